"""What was known of a patient before the prediction time? Clinical inputs from MEDS events, strictly before it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client.codes import matches
from shared.config import Features
from shared.errors import OwnDataError, SiteError
from shared.site_folder import Dataset

BIRTH = "MEDS_BIRTH"
_SECONDS_PER_YEAR = 365.25 * 86400


def clinical_inputs(
    events: pd.DataFrame, cases: pd.DataFrame, features: Features
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The clinical inputs of some cases.

    Args:
        events: columns of ``shared.site_folder.EVENTS``.
        cases: ``subject_id`` and ``prediction_time``, N rows.

    Returns:
        Inputs (N, 2 Fn + Fc): numeric values (NaN when missing), their ages in years (NaN when missing), codes as 0 or
        1; and whether a case has any of them, (N,).
    """
    cases = cases.reset_index(drop=True)
    values, ages = [], []
    if features.age:
        age_years = _age(events, cases)
        values.append(age_years)
        ages.append(np.where(np.isnan(age_years), np.nan, 0.0))
    for feature in features.numeric:
        rows = events[(events["code"] == feature.code) & events["numeric_value"].notna()]
        rows = rows[rows["numeric_value"].between(feature.low, feature.high)]
        newest, age_years = _newest(rows, cases, feature.lookback_days)
        values.append(newest)
        ages.append(age_years)
    codes = []
    for code_feature in features.codes:
        rows = events[matches(events["code"], code_feature.codes)]
        _, age_years = _newest(rows, cases, code_feature.lookback_days)
        codes.append((~np.isnan(age_years)).astype(np.float64))
    inputs = np.stack([*values, *ages, *codes], axis=1).astype(np.float32)
    recorded = np.any([~np.isnan(column) for column in values] + [column > 0 for column in codes], axis=0)
    return inputs, recorded


def check_units(dataset: Dataset, events: pd.DataFrame, features: Features) -> None:
    """Raise ``SiteError`` when the site states a feature in another unit, or when its values cannot be in that unit."""
    for feature in features.numeric:
        unit = dataset.units.get(feature.code)
        if unit is not None and unit != feature.unit:
            remedy = "Convert the values at import and state the unit in dataset.yaml."
            raise SiteError(
                f"dataset.yaml: units: {feature.code}", f"must be {feature.unit}", value=unit, remedy=remedy
            )
        values = events.loc[events["code"] == feature.code, "numeric_value"].dropna()
        outside = float((~values.between(feature.low, feature.high)).mean()) if len(values) else 0.0
        if outside > 0.2:
            rule = f"must mostly lie in [{feature.low:g}, {feature.high:g}] {feature.unit}"
            remedy = "Check the unit of the export."
            raise OwnDataError(f"events.parquet: {feature.code}", rule, value=f"{outside:.0%} outside", remedy=remedy)


def _newest(
    rows: pd.DataFrame, cases: pd.DataFrame, lookback_days: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each case value and age in years of the newest row strictly before the prediction time and within look-back.

    Rows without a time (static, such as sex) hold for every time, with age 0, where no dated row serves. Both are NaN
    where there is none.
    """
    values, ages = np.full(len(cases), np.nan), np.full(len(cases), np.nan)
    dated = rows[rows["time"].notna()]
    if len(dated) and len(cases):
        times, asked = dated["time"].to_numpy("datetime64[us]"), cases["prediction_time"].to_numpy("datetime64[us]")
        order, place = _places_before(dated["subject_id"].to_numpy(), times, cases["subject_id"].to_numpy(), asked)
        row = order[np.maximum(place, 0)]
        passed = asked - times[row]
        found = (place >= 0) & (passed <= np.timedelta64(lookback_days, "D"))
        values[found] = dated["numeric_value"].to_numpy(np.float64)[row[found]]
        ages[found] = passed[found].astype(np.int64) / 1_000_000 / _SECONDS_PER_YEAR
    static = rows[rows["time"].isna()].drop_duplicates("subject_id").set_index("subject_id")["numeric_value"]
    if len(static):
        fill = np.isnan(ages) & cases["subject_id"].isin(static.index).to_numpy()
        ages[fill] = 0.0
        values[fill] = cases["subject_id"][fill].map(static)
    return values, ages


def _places_before(
    subjects: NDArray[np.int64], times: NDArray[np.datetime64], whose: NDArray[np.int64], when: NDArray[np.datetime64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows in order of subject and time, and for each case the place in it of its newest row; -1 where it has none.

    One search in numbers that order as pairs do: several times as fast as to merge tables, for each of many features.
    """
    _, subject = np.unique(np.concatenate([subjects, whose]), return_inverse=True)
    instants, instant = np.unique(np.concatenate([times, when]), return_inverse=True)
    number = subject * len(instants) + instant
    rows, asked = number[: len(subjects)], number[len(subjects) :]
    order = np.argsort(rows, kind="stable")  # of several at one time the last
    place = np.searchsorted(rows[order], asked, side="left") - 1
    return order, np.where(subjects[order[np.maximum(place, 0)]] == whose, place, -1)


def _age(events: pd.DataFrame, cases: pd.DataFrame) -> NDArray[np.float64]:
    births = events[(events["code"] == BIRTH) & events["time"].notna()]
    born = births.groupby("subject_id")["time"].min().reindex(cases["subject_id"])  # map() fails where nobody has one
    years = (cases["prediction_time"] - born.to_numpy()).dt.total_seconds() / _SECONDS_PER_YEAR
    return np.asarray(years.where(years > 0), dtype=np.float64)
