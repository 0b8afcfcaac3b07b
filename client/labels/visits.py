"""At which times is a prediction made? One a patient and visit."""

from __future__ import annotations

import pandas as pd

from client.codes import matches
from client.labels.task import ANY_SCAN, EVERY, FIRST, Anchor
from shared.errors import SiteError


def find_visits(events: pd.DataFrame, images: pd.DataFrame, anchor: Anchor) -> pd.DataFrame:
    """``subject_id`` and ``prediction_time`` of each visit, by patient and time.

    A visit is a day; its time is that of the latest scan of either kind, or event, on it: a case holds the scans up to
    its prediction time, and the infrared scan may be taken after the OCT.

    Raises:
        SiteError: the site has nothing of what the anchor asks for.
    """
    points = _events(events, anchor.codes) if anchor.codes else _scans(images, anchor.scans)
    days = points.assign(day=points["prediction_time"].dt.normalize())
    visits = days.groupby(["subject_id", "day"])["prediction_time"].max().reset_index()
    if anchor.visits != EVERY:
        visits = visits.drop_duplicates("subject_id", keep="first" if anchor.visits == FIRST else "last")
    return visits[["subject_id", "prediction_time"]].reset_index(drop=True)


def _scans(images: pd.DataFrame, kind: str) -> pd.DataFrame:
    wanted = images if kind == ANY_SCAN else images[images["modality"] == kind]
    if wanted.empty:
        remedy = "Import scans first, or name events as visits in the task: anchor.codes."
        rule = f"must hold {'scans' if kind == ANY_SCAN else f'{kind} scans'} to label"
        raise SiteError("imaging/index.parquet", rule, remedy=remedy)
    day = images["acquired_at"].dt.normalize()
    chosen = pd.MultiIndex.from_arrays([wanted["subject_id"], day[wanted.index]])
    there = images[pd.MultiIndex.from_arrays([images["subject_id"], day]).isin(chosen)]
    return there.rename(columns={"acquired_at": "prediction_time"})[["subject_id", "prediction_time"]]


def _events(events: pd.DataFrame, codes: tuple[str, ...]) -> pd.DataFrame:
    found = events[matches(events["code"], codes) & events["time"].notna()]
    if found.empty:
        remedy = "Import them first, or correct the task: anchor.codes."
        raise SiteError("events.parquet", "must hold dated events that are the visits to label", remedy=remedy)
    return found.rename(columns={"time": "prediction_time"})[["subject_id", "prediction_time"]]


def of_patients(values: pd.Series, visits: pd.DataFrame) -> pd.Series:
    """What is known of each visit's patient, by patients; missing where nothing is."""
    return pd.Series(values.reindex(visits["subject_id"]).to_numpy(), index=visits.index)
