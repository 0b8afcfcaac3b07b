"""Does a site folder keep the contract? Every fault at once, each with name, value, rule and remedy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import TypeVar

import pandas as pd

from shared.errors import SiteError
from shared.site_folder import IMAGE_MODALITIES, SPLITS, Dataset, SiteFolder

T = TypeVar("T")


class SiteFaultsError(SiteError):
    """All faults of one site folder, one a line."""

    def __init__(self, folder: Path, faults: list[SiteError]) -> None:
        self.folder, self.faults = folder, faults
        lines = "\n".join(f"  {fault}" for fault in faults)
        SiteError.__init__(self, str(folder), f"breaks the contract in {len(faults)} place(s):\n{lines}")

    def for_others(self) -> str:  # file names, image ids and codes of an export may name its patients
        return f"site folder breaks the contract in {len(self.faults)} place(s); there, fedretina site check lists them"

    def __reduce__(self) -> tuple[object, ...]:
        return SiteFaultsError, (self.folder, self.faults)


def check_site(folder: SiteFolder) -> None:
    """Raise ``SiteFaultsError`` with every fault of the folder; return when there is none."""
    faults = list(find_faults(folder))
    if faults:
        raise SiteFaultsError(folder.path, faults)


def find_faults(folder: SiteFolder) -> Iterator[SiteError]:
    """Every way in which the folder breaks the contract, tables in order."""
    faults: list[SiteError] = []

    def read(reader: Callable[[], T]) -> T | None:
        try:
            return reader()
        except SiteError as error:
            faults.append(error)
            return None

    dataset, events, images = read(folder.dataset), read(folder.events), read(folder.images)
    splits = read(folder.subject_splits)
    labels = {task: read(lambda task=task: folder.labels(task)) for task in folder.tasks()}  # type: ignore[misc]
    yield from faults
    if dataset is not None:
        yield from _dataset_faults(dataset)
    if events is not None:
        yield from _event_faults(events, dataset)
    if images is not None:
        yield from _image_faults(images, folder)
    if splits is not None:
        yield from _split_faults(splits)
    for task, table in labels.items():
        if table is not None and events is not None and images is not None:
            yield from _label_faults(table, task, events, images)


def _dataset_faults(dataset: Dataset) -> Iterator[SiteError]:
    if not dataset.site:
        yield SiteError("dataset.yaml: site", "must not be empty", remedy="Name the site there.")
    if dataset.extracted_at:
        try:
            date.fromisoformat(dataset.extracted_at[:10])
        except ValueError:
            name, remedy = "dataset.yaml: extracted_at", "Write it as 2024-12-31."
            yield SiteError(name, "must be an ISO date", value=dataset.extracted_at, remedy=remedy)


def _event_faults(events: pd.DataFrame, dataset: Dataset | None) -> Iterator[SiteError]:
    yield from _nulls(events, "events.parquet", ["subject_id", "code"])
    if dataset is None:
        return
    measured = events.loc[events["numeric_value"].notna(), "code"]
    for code in sorted(set(measured.dropna()) - set(dataset.units)):
        remedy = "Add it under units in dataset.yaml."
        yield SiteError(f"events.parquet: code {code}", "must have a unit, as it has numeric values", remedy=remedy)
    if dataset.extracted_at:
        try:
            end = pd.Timestamp(dataset.extracted_at[:10]) + timedelta(days=1)
        except ValueError:
            return
        late = int((events["time"] >= end).sum())
        if late:
            rule = f"must not be later than extracted_at {dataset.extracted_at}"
            remedy = "Correct the times, or extracted_at in dataset.yaml."
            yield SiteError("events.parquet: time", rule, value=f"{late} later event(s)", remedy=remedy)


def _image_faults(images: pd.DataFrame, folder: SiteFolder) -> Iterator[SiteError]:
    table = "imaging/index.parquet"
    yield from _nulls(images, table, ["image_id", "subject_id", "eye", "acquired_at", "modality", "path", "sha256"])
    yield from _outside(images, table, "eye", ("R", "L"))
    yield from _outside(images, table, "modality", IMAGE_MODALITIES)
    repeated = images.loc[images["image_id"].duplicated(), "image_id"]
    if len(repeated):
        value = f"{repeated.iloc[0]} and {len(repeated) - 1} more" if len(repeated) > 1 else repeated.iloc[0]
        yield SiteError(f"{table}: image_id", "must be unique", value=value, remedy="Remove the duplicates.")
    files, remedy = os.fspath(folder.image_files), "Import the scans again, or restore imaging from a copy."
    for path in images["path"].dropna().unique():  # of these there are many
        if path.startswith("/") or ".." in path.split("/"):
            yield SiteError(f"{table}: path", "must stay inside imaging/files", value=path, remedy=remedy)
        elif not os.path.isfile(f"{files}/{path}"):
            yield SiteError(f"{table}: path", "must name a file in imaging/files", value=path, remedy=remedy)
    remedy = "Give each pair a pair_id of its own; an import of scans does."
    paired = images[images["pair_id"].notna()]
    members = paired.groupby("pair_id")
    mixed = members[["subject_id", "eye"]].nunique().max(axis=1)
    for pair in mixed[mixed > 1].index:
        yield SiteError(f"{table}: pair_id", "must join images of one eye of one patient", value=pair, remedy=remedy)
    twice = paired[paired.duplicated(["pair_id", "modality"])]["pair_id"].unique()
    for pair in twice:
        yield SiteError(f"{table}: pair_id", "must join one OCT and one IR at most", value=pair, remedy=remedy)


def _split_faults(splits: pd.DataFrame) -> Iterator[SiteError]:
    yield from _outside(splits, "subject_splits.parquet", "split", SPLITS)
    per_subject = splits.groupby("subject_id")["split"].nunique()
    count = int((per_subject > 1).sum())
    if count:
        remedy = "Keep one row a patient."
        rule = "must put each patient in one split"
        yield SiteError("subject_splits.parquet", rule, value=f"{count} patient(s) in two", remedy=remedy)


def _label_faults(labels: pd.DataFrame, task: str, events: pd.DataFrame, images: pd.DataFrame) -> Iterator[SiteError]:
    table = f"labels/{task}.parquet"
    if labels.empty:
        return
    yield from _nulls(labels, table, list(labels.columns))
    twice = int(labels.duplicated(["subject_id", "prediction_time"]).sum())
    if twice:
        rule, remedy = "must hold one label a patient and time", "Keep one of each."
        yield SiteError(table, rule, value=f"{twice} repeated", remedy=remedy)
    first_event = (
        events.assign(time=events["time"].fillna(pd.Timestamp(1700, 1, 1))).groupby("subject_id")["time"].min()
    )
    first_image = images.groupby("subject_id")["acquired_at"].min()
    known = pd.concat([first_event, first_image]).groupby(level=0).min()
    first = labels["subject_id"].map(known)
    unknown = int(first.isna().sum())
    if unknown:
        remedy = "Import their records or drop their labels."
        yield SiteError(table, "must label patients of this site", value=f"{unknown} unknown", remedy=remedy)
    early = int((first > labels["prediction_time"]).sum())
    if early:
        rule = "must have data before the prediction time"
        remedy = "Check the time zone and the date columns: inputs are taken only from before it."
        yield SiteError(
            f"{table}: prediction_time", rule, value=f"{early} label(s) with later data only", remedy=remedy
        )


def _nulls(frame: pd.DataFrame, table: str, columns: list[str]) -> Iterator[SiteError]:
    for column in columns:
        count = int(frame[column].isna().sum())
        if count:
            remedy = "Fill in what is missing, or leave these rows out."
            yield SiteError(f"{table}: column {column}", "must not be null", value=f"{count} null(s)", remedy=remedy)


def _outside(frame: pd.DataFrame, table: str, column: str, allowed: tuple[str, ...]) -> Iterator[SiteError]:
    wrong = sorted(set(frame[column].dropna()) - set(allowed))
    if wrong:
        remedy = "Write the others as one of these, or leave their rows out."
        yield SiteError(f"{table}: {column}", f"must be one of {', '.join(allowed)}", value=wrong[0], remedy=remedy)
