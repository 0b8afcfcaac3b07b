"""What is there to count? The tables of a site folder, as far as they can be read, brought into countable form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import pandas as pd
import pyarrow as pa

from client.site import SiteSettings, read_settings
from shared.errors import SiteError
from shared.site_folder import EVENTS, IMAGE_MODALITIES, IMAGES, LABELS, SPLITS, SUBJECT_SPLITS, Dataset, SiteFolder

T = TypeVar("T")
OTHER, UNSTATED = "other", "not stated"


@dataclass(frozen=True)
class Tables:
    """A site folder's tables; what breaks the contract is an empty table here, and a fault in the check.

    Attributes:
        images: eye, modality and device hold only words that may be shown, ``year`` is of the acquisition.
        labels: by task.
    """

    settings: SiteSettings
    dataset: Dataset
    events: pd.DataFrame
    images: pd.DataFrame
    labels: Mapping[str, pd.DataFrame]
    splits: pd.DataFrame

    @cached_property
    def patients(self) -> frozenset[int]:
        """Everybody with a scan or an event."""
        return frozenset(self.images["subject_id"].unique()) | frozenset(self.events["subject_id"].unique())


def read_tables(folder: SiteFolder) -> Tables:
    """What can be read of a site folder."""
    events, images = _or_empty(folder.events, EVENTS), _or_empty(folder.images, IMAGES)
    labels = {task: _or_empty(lambda task=task: folder.labels(task), LABELS) for task in folder.tasks()}  # type: ignore[misc]
    return Tables(
        settings=_or(lambda: read_settings(folder.path), SiteSettings()),
        dataset=_or(folder.dataset, Dataset(site="")),
        events=events.dropna(subset=["subject_id", "code"]),
        images=countable(images.dropna(subset="subject_id")),
        labels={task: table.dropna() for task, table in labels.items() if len(table)},
        splits=_or_empty(folder.subject_splits, SUBJECT_SPLITS),
    )


def _or(read: Callable[[], T], otherwise: T) -> T:
    try:
        return read()
    except SiteError:  # find_faults tells of it
        return otherwise


def _or_empty(read: Callable[[], pd.DataFrame], schema: pa.Schema) -> pd.DataFrame:
    empty: pd.DataFrame = schema.empty_table().to_pandas()
    return _or(read, empty)


def countable(images: pd.DataFrame) -> pd.DataFrame:
    """The imaging index with words that may be shown only, and the year of acquisition."""
    acquired = pd.to_datetime(images["acquired_at"])
    return images.assign(
        acquired_at=acquired,
        eye=images["eye"].where(images["eye"].isin(["R", "L"]), OTHER),
        modality=images["modality"].where(images["modality"].isin(IMAGE_MODALITIES), OTHER),
        device=images["device"].fillna("").astype(str).str.strip().replace("", UNSTATED),
        year=acquired.dt.year.astype("Int64").astype("string").fillna(UNSTATED),
    )


def known_splits(splits: pd.DataFrame) -> pd.DataFrame:
    """Splits whose names may be shown, one row a patient."""
    named = splits.assign(split=splits["split"].where(splits["split"].isin(SPLITS), OTHER))
    return named.drop_duplicates("subject_id")
