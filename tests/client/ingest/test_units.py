"""Does a value keep its meaning when its unit changes, and is no unit guessed?"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.ingest.units import TABLES, Linear, conversion, normal_unit, read_measures, read_rows, read_units

UNITS = read_units()
HBA1C, IFCC = "LOINC//4548-4", "LOINC//59261-8"
NAMES = sorted(unit for code, unit in UNITS.bases if not code)
PAIRS = [(one, other) for one in NAMES for other in NAMES if UNITS.bases["", one][0] == UNITS.bases["", other][0]]
VALUES = st.floats(-1e4, 1e4)


def apply(linear: Linear, value: float) -> float:
    return linear.factor * value + linear.offset


def way(have: str, want: str, *codes: str) -> Linear:
    linear = conversion(UNITS, have, want, codes)
    assert linear is not None
    return linear


@given(st.sampled_from(PAIRS), VALUES)
def test_there_and_back_is_the_same_value(pair: tuple[str, str], value: float) -> None:
    one, other = pair
    assert math.isclose(apply(way(other, one), apply(way(one, other), value)), value, rel_tol=1e-9, abs_tol=1e-6)


@given(st.sampled_from(PAIRS), st.sampled_from(NAMES), VALUES)
def test_the_way_does_not_matter(pair: tuple[str, str], between: str, value: float) -> None:
    one, other = pair
    if (one, between) in PAIRS:
        by_another = apply(way(between, other), apply(way(one, between), value))
        assert math.isclose(by_another, apply(way(one, other), value), rel_tol=1e-9, abs_tol=1e-6)


def test_more_stays_more() -> None:
    assert all(linear.factor > 0 for _, linear in UNITS.bases.values())


@pytest.mark.parametrize(
    ("have", "value", "want", "expected"),
    [
        ("kPa", 16.0, "mm[Hg]", 120.01),
        ("[lb_av]", 150.0, "kg", 68.04),
        ("[stone_av]", 11.0, "kg", 69.85),
        ("[in_i]", 70.0, "cm", 177.8),
        ("m", 1.7, "cm", 170.0),
        ("[degF]", 98.6, "Cel", 37.0),
        ("K", 310.15, "Cel", 37.0),
        ("Hz", 1.2, "/min", 72.0),
        ("[lb_av]/[in_i]2", 0.0356, "kg/m2", 25.03),
    ],
)
def test_known_values(have: str, value: float, want: str, expected: float) -> None:
    assert apply(way(have, want), value) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(("mmol_mol", "percent"), [(42, 6.0), (48, 6.5), (53, 7.0), (64, 8.0), (75, 9.0), (86, 10.0)])
def test_hba1c_as_in_the_tables_of_diabetes_care(mmol_mol: float, percent: float) -> None:
    """Whole mmol/mol and tenths of a percent side by side, as ngsp.org/ifcc.asp prints them."""
    assert apply(way("mmol/mol", "%", HBA1C), mmol_mol) == pytest.approx(percent, abs=0.05)
    assert apply(way("mmol/mol", "%", IFCC, HBA1C), mmol_mol) == apply(way("mmol/mol", "%", HBA1C), mmol_mol)
    assert apply(way("%", "%", IFCC, HBA1C), mmol_mol / 10) == pytest.approx(percent, abs=0.05)  # per cent of IFCC


def test_only_hba1c_turns_mmol_per_mol_into_percent() -> None:
    assert conversion(UNITS, "mmol/mol", "%", ("LOINC//14959-1",)) is None
    assert apply(way("%", "%", HBA1C), 7.0) == 7.0


def test_units_of_different_things_do_not_convert() -> None:
    for one in NAMES:
        for other in NAMES:
            assert (conversion(UNITS, one, other) is not None) == ((one, other) in PAIRS)
    assert conversion(UNITS, "furlong", "cm") is None
    assert conversion(UNITS, "furlong", "furlong") == Linear()


@pytest.mark.parametrize(
    ("written", "unit"),
    [
        *[(text, "mm[Hg]") for text in ("mmHg", "mm Hg", "mm[Hg]", "MMHG", " mmhg ")],
        *[(text, "/min") for text in ("/min", "bpm", "BPM", "beats/min", "{beats}/min", "1/min", "{Beats}/min")],
        *[(text, "[lb_av]") for text in ("lb", "lbs", "[lb_av]", "LBS")],
        *[(text, "[in_i]") for text in ("in", "inch", "[in_i]", "[in_us]")],
        *[(text, "Cel") for text in ("°C", "C", "Cel", "degC", "deg C")],
        *[(text, "[degF]") for text in ("°F", "F", "[degF]", "degF")],
        *[(text, "kg/m2") for text in ("kg/m2", "kg/m^2", "kg/m²", "KG/M2")],
        *[(text, "%") for text in ("%", "% ", "percent", "%{HemoglobinA1C}", "%{any}")],
        *[(text, "mmol/mol") for text in ("mmol/mol", "mmol/mol Hb", "mmol/mol{Hb}")],
        *[("m", "m"), ("cm", "cm"), ("CM", "cm"), ("kg", "kg"), ("KG", "kg"), ("kPa", "kPa"), ("kpa", "kPa")],
        *[("10*3/uL", "10*3/uL"), ("mL/min/{1.73_m2}", "mL/min/{1.73_m2}"), ("M", "M")],
    ],
)
def test_spellings(written: str, unit: str) -> None:
    assert normal_unit(UNITS, written) == unit


@given(st.text(max_size=40))
def test_a_unit_is_short_without_spaces_and_settled(text: str) -> None:
    unit = normal_unit(UNITS, text)
    if unit is not None:
        assert len(unit) <= 24
        assert not any(letter.isspace() for letter in unit)
        assert normal_unit(UNITS, unit) == unit


def test_no_spelling_is_of_two_units() -> None:
    seen: dict[str, str] = {}
    for row in read_rows(TABLES / "units.csv"):
        for spelling in [row["unit"], *row["spellings"].split("|")]:
            assert not spelling or seen.setdefault(spelling, row["unit"]) == row["unit"], spelling


def test_what_is_wanted_beside_the_study_has_a_known_unit() -> None:
    for measure in read_measures().values():
        assert measure.unit in NAMES
        assert measure.low < measure.high
