"""From when to when would nothing of a patient have been missed? By the day, as records rarely tell more."""

from __future__ import annotations

import pandas as pd

from client.ingest.export import BIRTH, OBSERVED_FROM, OBSERVED_UNTIL
from client.labels.visits import of_patients
from shared.config import ONSET

_DAY = pd.Timedelta(days=1)
# Stand for an unstated begin or end, within what every table can hold.
_EVER, _STILL = pd.Timestamp("1700-01-01").as_unit("us"), pd.Timestamp("2250-01-01").as_unit("us")


def observed(events: pd.DataFrame, visits: pd.DataFrame, extracted_at: pd.Timestamp | None) -> pd.DataFrame:
    """The period around each visit in which its patient was observed.

    A begin or end that the record does not state is the first or last event; births and onsets are none, as they are
    often told of years later. Between and after stated periods a patient is not observed.
    ``since`` depends on what is dated up to the day of the visit only.

    Args:
        visits: ``subject_id`` and ``prediction_time``, N rows.
        extracted_at: an unstated end is the end of this day instead.

    Returns:
        ``since`` (the midnight before) and ``until`` (the midnight after, exclusive), N rows; NaT where not observed.
    """
    seen = events[events["time"].notna() & (events["code"] != BIRTH) & ~events["code"].str.startswith(ONSET)]
    days = seen.groupby("subject_id")["time"].agg(["min", "max"])
    first, last = (of_patients(days[side].dt.normalize(), visits) for side in ("min", "max"))
    unstated_end = last + _DAY if extracted_at is None else last.mask(last.notna(), extracted_at.normalize() + _DAY)
    periods = stated_periods(events)
    latest = _latest(periods, visits)
    outside = ~(visits["prediction_time"] < latest["until"])
    since = latest["since"].mask(outside).mask(latest["since"].isna() | (latest["since"] == _EVER) & ~outside, first)
    is_stated = visits["subject_id"].isin(periods["subject_id"])
    until = latest["until"].mask(outside).mask(~is_stated | (latest["until"] == _STILL), unstated_end)
    return pd.DataFrame({"since": since, "until": until})


def stated_periods(events: pd.DataFrame) -> pd.DataFrame:
    """Disjoint periods: ``subject_id``, ``since``, ``until`` (exclusive midnight).

    One that follows another on the next day continues it. A begin within a period, and a second end, say nothing.
    """
    edges = events.loc[events["code"].isin([OBSERVED_FROM, OBSERVED_UNTIL]) & events["time"].notna()]
    closes, day = edges["code"] == OBSERVED_UNTIL, edges["time"].dt.normalize()
    edges = pd.DataFrame({"subject_id": edges["subject_id"], "day": day.mask(closes, day + _DAY), "closes": closes})
    edges = edges.drop_duplicates().drop_duplicates(["subject_id", "day"], keep=False)
    edges = edges.sort_values(["subject_id", "day"], ignore_index=True)
    edges["before"] = edges.groupby("subject_id")["closes"].shift()  # missing for a patient's first
    edges = edges[edges["before"].isna() | (edges["before"] != edges["closes"])]
    edges["following"] = edges.groupby("subject_id")["day"].shift(-1).fillna(_STILL)
    begun = edges[~edges["closes"]].rename(columns={"day": "since", "following": "until"})
    unstated = edges[edges["closes"] & edges["before"].isna()].rename(columns={"day": "until"}).assign(since=_EVER)
    return pd.concat([begun, unstated], ignore_index=True)[["subject_id", "since", "until"]]


def _latest(periods: pd.DataFrame, visits: pd.DataFrame) -> pd.DataFrame:
    """The last stated period that began before each visit; NaT where none did."""
    wanted = visits.assign(row=range(len(visits))).sort_values("prediction_time", kind="stable")
    periods = periods.sort_values("since")
    found = pd.merge_asof(wanted, periods, left_on="prediction_time", right_on="since", by="subject_id")
    return found.sort_values("row", ignore_index=True)[["since", "until"]]
