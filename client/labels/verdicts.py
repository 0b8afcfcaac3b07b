"""Which visits are positive, which negative, and which get no label? The rules of docs/labels.md, in their order."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from client.codes import matches
from client.ingest.export import BIRTH, DEATH
from client.labels.observation import observed
from client.labels.strokes import distinct, occurrences
from client.labels.task import AFTER, BEFORE, EXCLUDE, LabelTask
from client.labels.visits import of_patients

POSITIVE, NEGATIVE = "positive", "negative"
# Why a visit gets no label; the first that applies is counted.
NO_RECORD, AFTER_DEATH, AGE = "no record", "after death", "age"
EXCLUDED_CODE, SAME_DAY, EARLIER_STROKE = "excluded code", "stroke on the same day", "earlier stroke"
UNOBSERVED, DIED = "not observed long enough", "death in the window"
REASONS = (NO_RECORD, AFTER_DEATH, AGE, EXCLUDED_CODE, SAME_DAY, EARLIER_STROKE, UNOBSERVED, DIED)

_DAY, _TICK = pd.Timedelta(days=1), pd.Timedelta(microseconds=1)
_EVER = pd.Timestamp("1700-01-01").as_unit("us")  # stands for a time that nobody knows: before every visit
_DAYS_PER_YEAR = 365.25
Mask = NDArray[np.bool_]


def verdicts(
    events: pd.DataFrame, visits: pd.DataFrame, task: LabelTask, extracted_at: pd.Timestamp | None
) -> NDArray[np.str_]:
    """What becomes of each visit: ``POSITIVE``, ``NEGATIVE`` or one of ``REASONS``.

    Args:
        events: columns of ``shared.site_folder.EVENTS``, in any order.
        visits: ``subject_id`` and ``prediction_time``, N rows numbered from 0.
        extracted_at: ends an observation whose end is not stated; None: the last event does.

    Returns:
        N words.
    """
    t = visits["prediction_time"]
    day, end = t.dt.normalize(), t + pd.Timedelta(days=task.horizon_days)
    occurred = occurrences(events, task.outcome, task.stroke_time)
    strokes = distinct(occurred, task.same_stroke_days)
    positive = _has_stroke_in_window(strokes, visits, task)
    death = _first(events[(events["code"] == DEATH) & events["time"].notna()], visits)
    rules: dict[str, pd.Series | Mask] = {
        NO_RECORD: ~visits["subject_id"].isin(events["subject_id"]),
        AFTER_DEATH: death < day,
        AGE: _is_young(events, visits, task.minimum_age_years),
        EXCLUDED_CODE: _first(events[matches(events["code"], task.exclude_codes)], visits) <= t,
        SAME_DAY: (task.same_day == EXCLUDE) & (_nearest(strokes, visits, day + _DAY - _TICK, "backward") >= day),
        EARLIER_STROKE: (task.prevalent == EXCLUDE) & _had_stroke(events, visits, occurred, positive, task),
        POSITIVE: positive,
        UNOBSERVED: ~_is_observed(events, visits, death, task, extracted_at),
        DIED: (task.window == AFTER) & (task.death == EXCLUDE) & (death <= end),
    }
    return np.select([np.asarray(mask, dtype=bool) for mask in rules.values()], list(rules), NEGATIVE)


def _has_stroke_in_window(strokes: pd.DataFrame, visits: pd.DataFrame, task: LabelTask) -> Mask:
    t, window = visits["prediction_time"], pd.Timedelta(days=task.horizon_days)
    divide = _divide(t, task.same_day)
    if task.window == BEFORE:
        return np.asarray(_nearest(strokes, visits, divide, "backward") >= t - window)
    return np.asarray(_nearest(strokes, visits, divide, "forward") <= t + window)


def _divide(t: pd.Series, same_day: str) -> pd.Series:
    """A stroke up to this moment is before the prediction, a later one after it."""
    day: pd.Series = t.dt.normalize()
    if same_day == BEFORE:
        return day + _DAY - _TICK
    return day - _TICK if same_day == AFTER else t


def _nearest(
    strokes: pd.DataFrame, visits: pd.DataFrame, moment: pd.Series, direction: Literal["backward", "forward"]
) -> pd.Series:
    """The last stroke up to each moment (backward), or the first one after it (forward); NaT where there is none."""
    wanted = visits.assign(moment=moment, row=range(len(visits))).sort_values("moment")
    found = pd.merge_asof(
        wanted,
        strokes.sort_values("time"),
        left_on="moment",
        right_on="time",
        by="subject_id",
        direction=direction,
        allow_exact_matches=direction == "backward",
    )
    return found.sort_values("row", ignore_index=True)["time"]


def _first(events: pd.DataFrame, visits: pd.DataFrame) -> pd.Series:
    """The patient's first of these events, NaT where there is none; one without a time is before everything."""
    return of_patients(events["time"].fillna(_EVER).groupby(events["subject_id"]).min(), visits)


def _had_stroke(
    events: pd.DataFrame, visits: pd.DataFrame, occurred: pd.DataFrame, positive: Mask, task: LabelTask
) -> Mask:
    """Whether a stroke is known from before the window, or a code in it tells of one at a time that nobody knows."""
    t = visits["prediction_time"]
    old = occurrences(events, task.prevalent_codes, task.stroke_time)
    stroke, told = _first(occurred, visits), _first(old[~matches(old["code"], task.outcome)], visits)
    told_by_day: Mask = np.asarray(told < t.dt.normalize() + _DAY)
    if task.window == AFTER:
        before: Mask = np.asarray(stroke <= _divide(t, task.same_day))
        return told_by_day | before
    begin = t - pd.Timedelta(days=task.horizon_days)
    before_window: Mask = np.asarray((stroke < begin) | (told < begin))
    return before_window | (told_by_day & ~positive)


def _is_observed(
    events: pd.DataFrame, visits: pd.DataFrame, death: pd.Series, task: LabelTask, extracted_at: pd.Timestamp | None
) -> Mask:
    """Whether nothing would be missed in the part of the window that the task asks for, or until death."""
    if not task.needed_days:
        return np.ones(len(visits), dtype=bool)
    t, needed = visits["prediction_time"], pd.Timedelta(days=task.needed_days)
    period = observed(events, visits, extracted_at)
    if task.window == BEFORE:
        return np.asarray(period["since"] <= t - needed)
    end = (t + needed).mask(death <= t + needed, death)
    return np.asarray((period["since"] <= t) & (period["until"] > end))


def _is_young(events: pd.DataFrame, visits: pd.DataFrame, minimum_age_years: float) -> Mask:
    born = _first(events[(events["code"] == BIRTH) & events["time"].notna()], visits)
    age_days = (visits["prediction_time"] - born).dt.total_seconds() / _DAY.total_seconds()
    return (minimum_age_years > 0) & ~np.asarray(age_days >= minimum_age_years * _DAYS_PER_YEAR)
