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
        newest = _newest(rows, cases, feature.lookback_days)
        values.append(newest["numeric_value"].to_numpy(np.float64))
        ages.append(newest["age_years"].to_numpy(np.float64))
    codes = []
    for code_feature in features.codes:
        rows = events[matches(events["code"], code_feature.codes)]
        newest = _newest(rows, cases, code_feature.lookback_days)
        codes.append(newest["age_years"].notna().to_numpy(np.float64))
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


def _newest(rows: pd.DataFrame, cases: pd.DataFrame, lookback_days: int) -> pd.DataFrame:
    """For each case the newest row strictly before the prediction time and within look-back.

    Rows without a time (static, such as sex) hold for every time, with age 0, where no dated row serves.
    """
    wanted = cases.assign(case=np.arange(len(cases))).sort_values("prediction_time", kind="stable")
    dated = rows[rows["time"].notna()].sort_values("time", kind="stable")
    merged = pd.merge_asof(
        wanted,
        dated[["subject_id", "time", "numeric_value"]],
        left_on="prediction_time",
        right_on="time",
        by="subject_id",
        allow_exact_matches=False,
        tolerance=pd.Timedelta(days=lookback_days),
    ).sort_values("case")
    age_years = (merged["prediction_time"] - merged["time"]).dt.total_seconds() / _SECONDS_PER_YEAR
    newest = pd.DataFrame({"numeric_value": merged["numeric_value"], "age_years": age_years})
    newest = newest.reset_index(drop=True)
    static = rows[rows["time"].isna()].drop_duplicates("subject_id").set_index("subject_id")
    if len(static):
        fill = newest["age_years"].isna() & cases["subject_id"].isin(static.index)
        newest.loc[fill, "age_years"] = 0.0
        newest.loc[fill, "numeric_value"] = cases.loc[fill, "subject_id"].map(static["numeric_value"])
    return newest


def _age(events: pd.DataFrame, cases: pd.DataFrame) -> NDArray[np.float64]:
    births = events[(events["code"] == BIRTH) & events["time"].notna()]
    born = births.groupby("subject_id")["time"].min().reindex(cases["subject_id"])  # map() fails where nobody has one
    years = (cases["prediction_time"] - born.to_numpy()).dt.total_seconds() / _SECONDS_PER_YEAR
    return np.asarray(years.where(years > 0), dtype=np.float64)
