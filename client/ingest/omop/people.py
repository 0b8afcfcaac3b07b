"""Who are the persons of a CDM: born when, of which sex, observed from when until when, and dead since when?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pandas as pd

from client.ingest.export import BIRTH, DEATH, OBSERVED_FROM, OBSERVED_UNTIL, QUARANTINED, RECORDS, SKIPPED
from client.ingest.omop.concepts import as_ids, looked_up

SEXES = {"8507": "SEX//M", "8532": "SEX//F"}
_DAY, _LAST = pd.Timedelta(days=1), pd.Timedelta(microseconds=1)
Reasons = Counter[tuple[str, str]]  # how many rows were left out, by outcome and reason


def clock(column: pd.Series) -> pd.Series:
    """Dates and times as the hospital's clock showed them: an offset is dropped. NaT for what is none."""
    local = column.str.replace(r"(:\d\d(?:\.\d+)?)\s*(?:Z|[+-]\d\d:?\d\d|[+-]\d\d)$", r"\1", regex=True)
    times = pd.to_datetime(local, format="ISO8601", errors="coerce").astype("datetime64[us]")
    return times.where(times.dt.year > 0)  # pandas takes 0000-01-01 for a date


def at_the_latest(times: pd.Series) -> pd.Series:
    """The last moment of the day where the time of day is not known, which a CDM writes as midnight.

    Inputs come from before a prediction; what was recorded later that day must not be among them.
    """
    return times.mask(times == times.dt.normalize(), times.dt.normalize() + _DAY - _LAST)


def first_known(*columns: pd.Series) -> pd.Series:
    """Of several columns of times the first that has one, row by row."""
    times = clock(columns[0])
    for column in columns[1:]:
        times = times.fillna(clock(column))
    return times


def drop(rows: pd.DataFrame, wrong: pd.Series, left: Reasons, outcome: str, reason: str) -> pd.DataFrame:
    """The rows that are not wrong; the others are counted."""
    left[outcome, reason] += int(wrong.sum())
    return rows[~wrong]


def records(rows: pd.DataFrame, code: object, time: pd.Series | None) -> pd.DataFrame:
    """Rows of ``RECORDS`` without a value, of rows with a ``patient``."""
    times = pd.Series(pd.NaT, index=rows.index) if time is None else time
    known = {"patient": rows["patient"], "time": times.astype("datetime64[us]"), "code": code}
    frame = pd.DataFrame(known, index=rows.index).assign(value=float("nan"), unit="")
    return frame[list(RECORDS)].astype({"code": "str", "unit": "str"})


def births(rows: pd.DataFrame, left: Reasons) -> pd.DataFrame:
    """Birth and sex of the rows of PERSON.

    Where only the year of birth is known, the middle of it stands for it; where only the month, its middle.
    """
    year, month, day = (as_ids(rows[f"{part}_of_birth"]) for part in ("year", "month", "day"))
    day = day.mask(day == "", "15").mask(month == "", "1").str.zfill(2)
    month = month.mask(month == "", "7").str.zfill(2)
    born = first_known(rows["birth_datetime"], year.str.zfill(4) + "-" + month + "-" + day)
    dated = drop(rows, born.isna(), left, QUARANTINED, "table person: no date of birth that is one")
    sex = looked_up(as_ids(rows["gender_concept_id"]), SEXES)
    known = drop(rows, sex == "", left, SKIPPED, "table person: sex is neither male nor female")
    return pd.concat([records(dated, BIRTH, born[dated.index]), records(known, sex[known.index], None)])


def deaths(rows: pd.DataFrame, left: Reasons) -> pd.DataFrame:
    """The rows of DEATH."""
    died = first_known(rows["death_datetime"], rows["death_date"])
    dated = drop(rows, died.isna(), left, QUARANTINED, "table death: no date that is one")
    return records(dated, DEATH, at_the_latest(died[dated.index]))


def observed(rows: pd.DataFrame, left: Reasons) -> pd.DataFrame:
    """Start and end of the rows of OBSERVATION_PERIOD: the whole first and the whole last day."""
    start = clock(rows["observation_period_start_date"])
    end = clock(rows["observation_period_end_date"])
    reason = "table observation_period: start or end is no date, or the end comes first"
    right = drop(rows, ~(start <= end), left, QUARANTINED, reason)
    return pd.concat(
        [
            records(right, OBSERVED_FROM, start[right.index]),
            records(right, OBSERVED_UNTIL, at_the_latest(end[right.index])),
        ]
    )


People = Callable[[pd.DataFrame, Reasons], pd.DataFrame]
# Per table: the columns that must be there, those that help, and what is made of them.
PEOPLE: dict[str, tuple[tuple[str, ...], tuple[str, ...], People]] = {
    "person": (
        ("person_id", "gender_concept_id", "year_of_birth"),
        ("month_of_birth", "day_of_birth", "birth_datetime"),
        births,
    ),
    "observation_period": (
        ("person_id", "observation_period_start_date", "observation_period_end_date"),
        (),
        observed,
    ),
    "death": (("person_id", "death_date"), ("death_datetime",), deaths),
}
