"""Is what enters the model what was known before the prediction time, and nothing else?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from client.features import check_units, clinical_inputs
from shared.config import CodeFeature, Features, NumericFeature
from shared.errors import SiteError
from shared.site_folder import Dataset
from tests.factories import EventRow, make_events, make_labels

T = pd.Timestamp("2020-06-01 10:00")
YEAR = 365.25
FEATURES = Features(
    age=True,
    numeric=(
        NumericFeature("pressure", "BP", "mm[Hg]", lookback_days=100, low=50, high=300),
        NumericFeature("sugar", "A1C", "%", lookback_days=1000, low=3, high=20),
    ),
    codes=(
        CodeFeature("diabetes", ("E11", "E10"), lookback_days=1000),
        CodeFeature("male", ("M",)),
    ),
)


def days(number: float) -> pd.Timedelta:
    return pd.Timedelta(days=number)


def inputs(rows: list[EventRow], cases: list[tuple[int, Any]] | None = None) -> np.ndarray:
    frame = pd.DataFrame(cases or [(1, T)], columns=["subject_id", "prediction_time"])
    frame["prediction_time"] = frame["prediction_time"].astype("datetime64[us]")
    return clinical_inputs(make_events(rows), frame, FEATURES)[0]


def pressure(rows: list[EventRow]) -> float:
    return float(inputs(rows)[0, 1])


def has_diabetes(rows: list[EventRow]) -> bool:
    return bool(inputs(rows)[0, 6])


def reference(rows: list[EventRow], subject: int, at: pd.Timestamp, features: Features) -> list[float]:
    """The same inputs, event by event, from the words of the design."""

    def newest(wanted: Any, lookback: int) -> tuple[float, float] | None:
        """Value and age in years."""
        best = None
        for who, when, code, value in rows:
            if who != subject or when is None or not wanted(code, value):
                continue
            time = pd.Timestamp(when)  # type: ignore[arg-type]
            usable = time < at and at - time <= days(lookback)
            if usable and (best is None or time >= best[0]):
                best = (time, value)
        if best is not None:
            return best[1], (at - best[0]) / days(YEAR)
        for who, when, code, value in rows:
            if who == subject and when is None and wanted(code, value):
                return value, 0.0  # type: ignore[return-value]
        return None

    values, ages, codes = [], [], []
    if features.age:
        births = [pd.Timestamp(w) for who, w, code, _ in rows if who == subject and code == "MEDS_BIRTH" and w]  # type: ignore[arg-type]
        age = (at - births[0]) / days(YEAR) if births else math.nan
        values.append(age if age > 0 else math.nan)
        ages.append(0.0 if age > 0 else math.nan)
    for f in features.numeric:
        found = newest(lambda c, v, f=f: c == f.code and v is not None and f.low <= v <= f.high, f.lookback_days)
        values.append(math.nan if found is None else found[0])
        ages.append(math.nan if found is None else found[1])
    for g in features.codes:
        found = newest(lambda c, v, g=g: any(c == w or c.startswith(w + ".") for w in g.codes), g.lookback_days)
        codes.append(0.0 if found is None else 1.0)
    return values + ages + codes


times = st.none() | st.builds(
    lambda d: T + days(d), st.sampled_from([-1001, -1000, -500, -101, -100, -99, -1, 0, 1, 40])
)
rows = st.tuples(
    st.integers(1, 3),
    times,
    st.sampled_from(["BP", "A1C", "E11", "E11.9", "E110", "E10.1", "E1", "M", "M.x", "X"]),
    st.none() | st.sampled_from([2.0, 3.0, 20.0, 49.5, 50.0, 120.0, 300.0, 301.0]),
)
births = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from([T - days(20_000), T - days(9), T + days(5)])),
    max_size=3,
    unique_by=lambda birth: birth[0],
).map(lambda found: [(subject, time, "MEDS_BIRTH", None) for subject, time in found])
cases = st.lists(st.tuples(st.integers(1, 4), st.sampled_from([T, T + days(1), T - days(50)])), min_size=1, max_size=5)


@given(st.lists(rows, max_size=14), births, cases)
def test_inputs_equal_a_slow_reading_of_the_design(
    events: list[EventRow], born: list[EventRow], wanted: list[tuple[int, Any]]
) -> None:
    expected = [reference(events + born, subject, at, FEATURES) for subject, at in wanted]
    np.testing.assert_allclose(inputs(events + born, wanted), np.array(expected), rtol=1e-5)


@settings(max_examples=30)
@given(st.lists(rows, max_size=10), st.lists(rows, max_size=6), st.lists(st.integers(0, 10**9), min_size=6, max_size=6))
def test_nothing_at_or_after_the_prediction_time_matters(
    known: list[EventRow], future: list[EventRow], seconds: list[int]
) -> None:
    later = [
        (subject, T + pd.Timedelta(seconds=after), code, value)
        for (subject, _, code, value), after in zip(future, seconds, strict=False)
    ]
    at = [(1, T), (2, T), (3, T)]
    np.testing.assert_array_equal(inputs(known + later, at), inputs(known, at))


@settings(max_examples=15)
@given(st.lists(rows, max_size=10), st.lists(rows, max_size=6))
def test_records_of_other_patients_do_not_matter(own: list[EventRow], others: list[EventRow]) -> None:
    assume(all(row[0] != 1 for row in others))
    np.testing.assert_array_equal(inputs(own + others), inputs(own))


def test_a_value_at_the_prediction_time_is_not_known_yet() -> None:
    assert math.isnan(pressure([(1, T, "BP", 120.0)]))
    assert pressure([(1, T - pd.Timedelta(microseconds=1), "BP", 120.0)]) == 120.0


def test_look_back_reaches_its_last_day_and_no_further() -> None:
    assert pressure([(1, T - days(100), "BP", 120.0)]) == 120.0
    assert math.isnan(pressure([(1, T - days(100) - pd.Timedelta(seconds=1), "BP", 120.0)]))


def test_the_newest_value_wins_whatever_the_order_of_rows() -> None:
    old, new = (1, T - days(9), "BP", 110.0), (1, T - days(2), "BP", 150.0)
    assert pressure([old, new]) == pressure([new, old]) == 150.0


@pytest.mark.parametrize("value", [49.9, 300.1, -1.0, 1e30, None, float("nan")])
def test_an_implausible_value_is_missing(value: float | None) -> None:
    assert math.isnan(pressure([(1, T - days(1), "BP", value)]))


def test_an_implausible_value_does_not_hide_the_one_before() -> None:
    assert pressure([(1, T - days(9), "BP", 110.0), (1, T - days(2), "BP", 999.0)]) == 110.0


@pytest.mark.parametrize("value", [50.0, 300.0])
def test_the_plausible_range_holds_its_ends(value: float) -> None:
    assert pressure([(1, T - days(1), "BP", value)]) == value


def test_the_age_of_a_measurement_is_in_years() -> None:
    assert inputs([(1, T - days(50), "BP", 120.0)])[0, 4] == pytest.approx(50 / YEAR)


def test_the_earliest_birth_counts_whatever_the_order_of_the_rows() -> None:
    later, earlier = (1, "1960-01-01", "MEDS_BIRTH", None), (1, "1950-01-01", "MEDS_BIRTH", None)
    cases = make_labels([(1, "2020-01-01", True)])
    features = FEATURES
    both = [clinical_inputs(make_events(rows), cases, features)[0] for rows in ([later, earlier], [earlier, later])]
    np.testing.assert_array_equal(both[0], both[1])
    assert both[0][0, 0] == pytest.approx(70, abs=0.1)


def test_age_is_in_years_and_missing_without_a_birth() -> None:
    assert inputs([(1, T - days(70 * YEAR), "MEDS_BIRTH", None)])[0, 0] == pytest.approx(70.0)
    assert math.isnan(inputs([(2, T - days(70 * YEAR), "MEDS_BIRTH", None)])[0, 0])


@pytest.mark.parametrize(
    ("code", "found"),
    [("E11", True), ("E11.9", True), ("E11.65.1", True), ("E10", True), ("E110", False), ("E1", False), ("E119", False),
     ("XE11", False), ("e11", False)],
)  # fmt: skip
def test_a_code_is_matched_whole_or_refined_after_a_dot(code: str, found: bool) -> None:
    assert has_diabetes([(1, T - days(1), code, None)]) is found


def test_an_undated_code_holds_for_every_time() -> None:
    at = [(1, T), (1, T - days(9000))]
    assert inputs([(1, None, "M", None)], at)[:, 7].tolist() == [1.0, 1.0]


def test_an_undated_value_serves_where_no_dated_one_does() -> None:
    assert pressure([(1, None, "BP", 130.0)]) == 130.0
    assert pressure([(1, None, "BP", 130.0), (1, T - days(3), "BP", 140.0)]) == 140.0
    assert pressure([(1, None, "BP", 130.0), (1, T + days(3), "BP", 140.0)]) == 130.0


def test_a_case_is_recorded_when_anything_is_known() -> None:
    frame = pd.DataFrame({"subject_id": [1, 2, 3, 4, 5], "prediction_time": [T] * 5})
    events = make_events(
        [
            (1, T - days(1), "BP", 120.0),
            (2, T - days(1), "E11", None),
            (3, T - days(999), "MEDS_BIRTH", None),
            (4, T - days(1), "unknown to the study", 3.0),
        ]
    )
    assert clinical_inputs(events, frame, FEATURES)[1].tolist() == [True, True, True, False, False]


def test_inputs_are_in_the_order_of_values_ages_codes() -> None:
    row = inputs([(1, T - days(YEAR * 50), "MEDS_BIRTH", None), (1, T - days(10), "A1C", 6.0), (1, None, "M", None)])[0]
    np.testing.assert_allclose(row, [50, np.nan, 6, 0, np.nan, 10 / YEAR, 0, 1], rtol=1e-5)
    assert row.dtype == np.float32


def test_no_events_at_all_are_all_missing() -> None:
    found, recorded = clinical_inputs(
        make_events([]), pd.DataFrame({"subject_id": [1], "prediction_time": [T]}), FEATURES
    )
    np.testing.assert_array_equal(found, [[np.nan] * 6 + [0.0] * 2])
    assert not recorded.any()


def test_no_cases_give_no_inputs() -> None:
    none = pd.DataFrame({"subject_id": pd.Series(dtype=np.int64), "prediction_time": pd.Series(dtype="datetime64[us]")})
    found, recorded = clinical_inputs(make_events([(1, T, "BP", 120.0)]), none, FEATURES)
    assert found.shape == (0, 8)
    assert recorded.shape == (0,)


def test_a_unit_that_is_not_the_studys_is_refused() -> None:
    dataset = Dataset("s", units={"BP": "kPa"})
    with pytest.raises(SiteError, match=r"^dataset\.yaml: units: BP must be mm\[Hg\], got 'kPa'\. Convert the values"):
        check_units(dataset, make_events([]), FEATURES)


def test_values_that_cannot_be_in_their_unit_are_refused() -> None:
    """Stated in mm[Hg], but written in kPa."""
    events = make_events([(i, T, "BP", 16.0 if i < 3 else 120.0) for i in range(10)])
    with pytest.raises(
        SiteError, match=r"BP must mostly lie in \[50, 300\] mm\[Hg\], got '30% outside'\. Check the unit"
    ):
        check_units(Dataset("s", units={"BP": "mm[Hg]"}), events, FEATURES)


def test_a_few_typing_errors_are_no_wrong_unit() -> None:
    events = make_events([(i, T, "BP", 1200.0 if i < 2 else 120.0) for i in range(10)])
    check_units(Dataset("s", units={"BP": "mm[Hg]", "other": "kPa"}), events, FEATURES)
