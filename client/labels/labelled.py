"""What labels does a site get by a task, and what became of every visit?"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from client.labels.task import EXTRACTED_AT, LabelTask
from client.labels.verdicts import NEGATIVE, POSITIVE, REASONS, verdicts
from client.labels.visits import find_visits
from shared.errors import SiteError
from shared.site_folder import Dataset


@dataclass(frozen=True)
class Tally:
    """How many visits, and of how many patients."""

    visits: int = 0
    patients: int = 0


@dataclass(frozen=True)
class Account:
    """What became of every visit.

    Attributes:
        outcomes: positive, negative, then each of ``client.labels.verdicts.REASONS``; they add up to all visits.
    """

    task: LabelTask
    outcomes: dict[str, Tally]


@dataclass(frozen=True)
class Labelled:
    """``labels``: columns of ``shared.site_folder.LABELS``, by patient and time."""

    labels: pd.DataFrame
    account: Account


def make_labels(events: pd.DataFrame, images: pd.DataFrame, dataset: Dataset, task: LabelTask) -> Labelled:
    """Label every visit of a site that the task's rules allow to.

    Args:
        events, images: columns of ``EVENTS`` and ``IMAGES`` in ``shared.site_folder``, in any order.

    Raises:
        SiteError: no visit or no event to label by, or no ``extracted_at`` where the task ends observation there.
    """
    if events.empty:
        raise SiteError("events.parquet", "must hold events to label by", remedy="Import the clinical record first.")
    visits = find_visits(events, images, task.anchor)
    extracted_at = _extracted_at(dataset) if task.without_end == EXTRACTED_AT else None
    verdict = pd.Series(verdicts(events, visits, task, extracted_at), index=visits.index)
    labels = visits.assign(boolean_value=verdict == POSITIVE)[verdict.isin([POSITIVE, NEGATIVE])]
    patients = visits.groupby(verdict)["subject_id"].nunique().to_dict()
    counted = {name: Tally(int(count), int(patients[name])) for name, count in verdict.value_counts().items()}
    outcomes = {name: counted.get(name, Tally()) for name in (POSITIVE, NEGATIVE, *REASONS)}
    return Labelled(labels.reset_index(drop=True), Account(task, outcomes))


def _extracted_at(dataset: Dataset) -> pd.Timestamp:
    if not dataset.extracted_at:
        remedy = "Import again, or choose without_end: last_event in the task."
        raise SiteError("dataset.yaml: extracted_at", "must be given, as the task asks for it", remedy=remedy)
    try:
        return pd.Timestamp(dataset.extracted_at[:10])
    except ValueError:
        raise SiteError("dataset.yaml: extracted_at", "must be an ISO date", value=dataset.extracted_at) from None
