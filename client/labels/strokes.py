"""When did the strokes of each patient occur? Each of them once, at its onset where the record tells it."""

from __future__ import annotations

import pandas as pd

from client.codes import matches
from client.labels.task import ONSET_TIME
from shared.config import ONSET

_STROKE = ["subject_id", "code", "time"]


def occurrences(events: pd.DataFrame, codes: tuple[str, ...], stroke_time: str) -> pd.DataFrame:
    """When something with one of ``codes`` occurred: ``subject_id``, ``code``, ``time`` (NaT where nobody knows).

    With ``stroke_time`` onset, a record takes the time of the newest onset of its patient and code that is not after
    it, and an onset that nothing was recorded of counts as well.
    """
    recorded = events.loc[matches(events["code"], codes), _STROKE]
    if stroke_time != ONSET_TIME:
        return recorded
    onsets = events.loc[matches(events["code"], tuple(ONSET + code for code in codes)), _STROKE]
    onsets = onsets[onsets["time"].notna()]
    if onsets.empty:
        return recorded
    onsets = onsets.assign(code=onsets["code"].str.removeprefix(ONSET)).sort_values("time", kind="stable")
    return pd.concat([onsets, _at_their_onset(recorded, onsets)], ignore_index=True)


def _at_their_onset(recorded: pd.DataFrame, onsets: pd.DataFrame) -> pd.DataFrame:
    dated = recorded[recorded["time"].notna()].sort_values("time", kind="stable")
    began = onsets.assign(onset=onsets["time"])
    dated = pd.merge_asof(dated, began, on="time", by=["subject_id", "code"])
    dated["time"] = dated["onset"].fillna(dated["time"])
    undated = recorded[recorded["time"].isna()].merge(
        onsets[["subject_id", "code"]].drop_duplicates(), how="left", indicator="known"
    )
    undated = undated[undated["known"] == "left_only"]  # the others are told by their onset
    return pd.concat([dated[_STROKE], undated[_STROKE]]) if len(undated) else dated[_STROKE]


def distinct(occurred: pd.DataFrame, same_stroke_days: int) -> pd.DataFrame:
    """One row a stroke of known time, ``subject_id`` and ``time``, by patient and time.

    What occurred up to ``same_stroke_days`` after the time before is the same stroke, which has its earliest time.
    """
    times = occurred.loc[occurred["time"].notna(), ["subject_id", "time"]].sort_values(["subject_id", "time"])
    since = times.groupby("subject_id")["time"].diff()  # missing for a patient's first
    return times[~(since <= pd.Timedelta(days=same_stroke_days))].reset_index(drop=True)
