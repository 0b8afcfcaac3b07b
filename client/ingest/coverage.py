"""How much of the records speaks the study's language? Counts for the site, and for others without small ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from client.codes import names
from client.ingest.export import BIRTH, DEATH, OBSERVED_FROM, OBSERVED_UNTIL
from shared.config import ONSET, Features

# Codes of the labels, which every site needs beside the inputs (stroke, its sequelae, TIA, history).
STROKE_CODES = tuple(f"ICD10//{code}" for code in ("I60", "I61", "I63", "I64", "I69", "G45", "Z86.73"))
SMALLEST_SHOWN = 5
_MOST_LISTED = 30
_ALWAYS = (BIRTH, DEATH, OBSERVED_FROM, OBSERVED_UNTIL)


@dataclass(frozen=True)
class FeatureCoverage:
    """What there is of one feature.

    Attributes:
        patients: with at least one event.
        rows: events.
        bad_unit: rows left out by their unit.
        bad_range: rows left out by their value.
    """

    patients: int = 0
    rows: int = 0
    bad_unit: int = 0
    bad_range: int = 0


@dataclass(frozen=True)
class Coverage:
    """What became of the codes of an import, or of all of them.

    Attributes:
        rows: by vocabulary, rows and rows whose code the study can read.
        codes: by vocabulary, the same of distinct codes.
        patients: by vocabulary, those with a row whose code the study can read, and those with one whose code it
            cannot; at least as many as this, as others may be among those of another import.
        unmapped: patients by code that the study cannot read; exact, so not for others.
        features: by name of the feature.
    """

    rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    codes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    patients: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    unmapped: Mapping[str, int] = field(default_factory=dict)
    features: Mapping[str, FeatureCoverage] = field(default_factory=dict)


def wanted_codes(features: Features) -> dict[str, tuple[str, ...]]:
    """The codes by feature, as a study names them, and those of age and of the stroke labels."""
    wanted: dict[str, tuple[str, ...]] = {"age": (BIRTH,)} if features.age else {}
    wanted |= {feature.name: (feature.code,) for feature in features.numeric}
    wanted |= {feature.name: feature.codes for feature in features.codes}
    return wanted | {"stroke (labels)": STROKE_CODES}


def is_readable(code: str, wanted: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether the study can read a code. ICD-10 as a whole can be: each code says a diagnosis in its language."""
    code = code.removeprefix(ONSET)
    if code in _ALWAYS or code.startswith(("ICD10//", "SEX//", "LOINC//72166-2//")):
        return True
    return any(names(codes, code) for codes in wanted.values())


def vocabulary_of(code: str) -> str:
    """The vocabulary that a code names."""
    return code.partition("//")[0]


def count_codes(rows: Mapping[tuple[str, bool], int], patients: Mapping[tuple[str, bool], int]) -> Coverage:
    """Coverage by vocabulary.

    Codes that are not mapped and features, which are counted by patient elsewhere, are left empty.

    Args:
        rows: by source code and whether it led to a code that the study can read.
        patients: by vocabulary and the same.
    """
    by_rows: dict[str, list[int]] = {}
    by_codes: dict[str, list[int]] = {}
    for (code, readable), count in rows.items():
        vocabulary = vocabulary_of(code)
        for table, amount in ((by_rows, count), (by_codes, 1)):
            totals = table.setdefault(vocabulary, [0, 0])
            totals[0] += amount
            totals[1] += amount if readable else 0
    by_patients = {name: (patients.get((name, True), 0), patients.get((name, False), 0)) for name in sorted(by_rows)}
    return Coverage(_pairs(by_rows), _pairs(by_codes), by_patients)


def _pairs(table: Mapping[str, list[int]]) -> dict[str, tuple[int, int]]:
    return {name: (table[name][0], table[name][1]) for name in sorted(table)}


def merged(coverages: Iterable[Coverage]) -> Coverage:
    """Rows and codes of several imports together, and of patients, who may be in several, how many there are at least.

    What else is counted by patient is left empty. A code that two imports have counts twice among the distinct ones.
    """
    rows: dict[str, list[int]] = {}
    codes: dict[str, list[int]] = {}
    patients: dict[str, tuple[int, int]] = {}
    for coverage in coverages:
        for table, part in ((rows, coverage.rows), (codes, coverage.codes)):
            for name, (total, mapped) in part.items():
                totals = table.setdefault(name, [0, 0])
                totals[0], totals[1] = totals[0] + total, totals[1] + mapped
        for name, (readable, unreadable) in coverage.patients.items():
            most = patients.get(name, (0, 0))
            patients[name] = max(most[0], readable), max(most[1], unreadable)
    return Coverage(_pairs(rows), _pairs(codes), dict(sorted(patients.items())))


def coverage_lines(coverage: Coverage) -> list[str]:
    """For people: one fact a line; small counts as <5, and a part that leaves a small rest as more than."""
    lines = ["codes that the study can read:"]
    for name, total, mapped in _frequent(coverage):
        distinct, known = coverage.codes.get(name, (0, 0))
        rows = f"{_share(mapped, total)} of {_shown(total)} rows"
        lines.append(f"  {name}: {rows}, {_part_shown(known, distinct)} of {_shown(distinct)} codes")
    lines.append("features of the study: patients, rows, rows left out by unit, by range")
    for name, one in coverage.features.items():
        counts = "  ".join(str(_shown(count)) for count in (one.patients, one.rows, one.bad_unit, one.bad_range))
        lines.append(f"  {name}: {counts}")
    listed, hidden = _listed(coverage.unmapped)
    if listed or hidden:
        lines.append(
            "codes that the study cannot read, of most patients first; map what says the same in a table of your own:"
        )
        lines += [f"  {code}: {count} patients" for code, count in listed[:_MOST_LISTED]]
        hidden += len(listed[_MOST_LISTED:])
        lines += [f"  and {_shown(hidden)} further codes"] if hidden else []
    return lines


def coverage_dict(coverage: Coverage) -> dict[str, Any]:
    """The same as plain data, ready for JSON; counts from 1 to 4 are the text "<5", and so is no rest told."""
    listed, hidden = _listed(coverage.unmapped)
    return {
        "vocabularies": {
            name: {
                "rows": _shown(total),
                "rows_readable": _part_shown(mapped, total),
                "codes": _shown(coverage.codes.get(name, (0, 0))[0]),
                "codes_readable": _part_shown(*reversed(coverage.codes.get(name, (0, 0)))),
            }
            for name, total, mapped in _frequent(coverage)
        },
        "features": {
            name: {
                "patients": _shown(one.patients),
                "rows": _shown(one.rows),
                "rows_bad_unit": _shown(one.bad_unit),
                "rows_bad_range": _shown(one.bad_range),
            }
            for name, one in coverage.features.items()
        },
        "unmapped": dict(listed[:_MOST_LISTED]),
        "unmapped_not_listed": _shown(hidden + len(listed[_MOST_LISTED:])),
    }


def _frequent(coverage: Coverage) -> list[tuple[str, int, int]]:
    """Vocabularies with their rows, but for those that occur so seldom that their name may be a slip of somebody's."""
    return [(name, total, mapped) for name, (total, mapped) in coverage.rows.items() if total >= SMALLEST_SHOWN]


def _listed(unmapped: Mapping[str, int]) -> tuple[list[tuple[str, int]], int]:
    """Codes frequent enough to be shown, the most frequent first, and how many are not."""
    frequent = [(code, count) for code, count in unmapped.items() if count >= SMALLEST_SHOWN]
    return sorted(frequent, key=lambda item: (-item[1], item[0])), len(unmapped) - len(frequent)


def _shown(count: int) -> int | str:
    return f"<{SMALLEST_SHOWN}" if 0 < count < SMALLEST_SHOWN else count


def _part_shown(part: int, whole: int) -> int | str:
    """A part that gives neither itself nor the rest away when they are small."""
    return f">{whole - SMALLEST_SHOWN}" if 0 < whole - part < SMALLEST_SHOWN <= part else _shown(part)


def _share(part: int, whole: int) -> str:
    if 0 < part < SMALLEST_SHOWN or 0 < whole - part < SMALLEST_SHOWN:
        return f"{_part_shown(part, whole)}"
    return f"{part / whole:.1%}" if whole else "none"
