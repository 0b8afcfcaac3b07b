"""What does a site have for a study? Its folder as arrays: scans to pretrain on, and labelled cases."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from client.features import check_units, clinical_inputs
from client.images import Pixels, open_pixels
from client.site import SiteSettings, read_settings
from client.splits import HELD_OUT, TRAIN, assign_splits, split_key
from shared.config import CLINICAL, Study
from shared.errors import OwnDataError, SiteError
from shared.inputs import Cases, Scans
from shared.schema import check_site
from shared.site_folder import SiteFolder
from shared.statistics import Survey, numeric_names

log = logging.getLogger(__name__)
Rows = NDArray[np.int64]  # rows of ``Pixels.values``; -1 where there is no scan


@dataclass(frozen=True, eq=False)
class SiteStore:
    """One site's data for one study.

    Attributes:
        subjects: (S,) the patients of the site, in order.
        scans: per image modality, pixel rows (P,) of the P eyes at a visit; ``scan_subjects`` their patients,
            ``scan_splits`` their splits.
        data_digest: SHA-256 of the tables that all of this was read from, and of which scans could be read.
        case_scans: per image modality, pixel rows (N, K) of the N labelled cases.
        embeddings: per image modality, (rows of pixels, D); given, cases have these in the place of pixels.
        clinical, recorded: as in ``shared.inputs.Cases``, for the N cases; None without the clinical branch.
        labels: (N,) 0 or 1; ``case_splits`` their splits, ``case_subjects`` their patients.
    """

    name: str
    settings: SiteSettings
    pixels: Pixels | None
    subjects: NDArray[np.int64]
    data_digest: str
    scans: dict[str, Rows]
    scan_subjects: NDArray[np.int64]
    scan_splits: NDArray[np.object_]
    case_scans: dict[str, Rows]
    clinical: NDArray[np.float32] | None
    recorded: NDArray[np.bool_] | None
    labels: NDArray[np.float32]
    case_splits: NDArray[np.object_]
    case_subjects: NDArray[np.int64]
    case_times: NDArray[np.datetime64]
    numeric_features: int
    embeddings: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def rows_of_scans(self, split: str) -> Rows:
        """The eyes at a visit that belong to a split."""
        return np.flatnonzero(self.scan_splits == split)

    def rows_of_cases(self, split: str) -> Rows:
        """The labelled cases that belong to a split."""
        return np.flatnonzero(self.case_splits == split)

    def take_scans(self, rows: Rows, random: np.random.Generator) -> Scans:
        """A batch of eyes, each with another scan of its patient drawn at random."""
        images, shown, others = {}, {}, {}
        for name, scans in self.scans.items():
            images[name], shown[name] = self._images(scans[rows])
            others[name], _ = self._images(self._draw_others(name, rows, random))
        return Scans(images, shown, others)

    def _draw_others(self, name: str, rows: Rows, random: np.random.Generator) -> Rows:
        """Pixel rows of another scan of each row's patient and modality; of the same one where there is no other."""
        order, start, count = self._by_patient[name]
        if not len(order):
            return self.scans[name][rows]
        place = start[rows] + (random.random(len(rows)) * np.maximum(count[rows] - 1, 1)).astype(np.int64)
        chosen = self.scans[name][order[np.minimum(place, len(order) - 1)]]
        own = self.scans[name][rows]
        # The last of a patient's scans takes the place of the row's own, so that each other is as likely.
        last = self.scans[name][order[np.clip(start[rows] + count[rows] - 1, 0, len(order) - 1)]]
        return np.where((own < 0) | (count[rows] < 2), own, np.where(chosen == own, last, chosen))

    @cached_property
    def _by_patient(self) -> dict[str, tuple[Rows, Rows, Rows]]:
        """Per modality: rows with a scan, patient by patient; where the patient of each row begins, and its number."""
        grouped = {}
        for name, scans in self.scans.items():
            there = np.flatnonzero(scans >= 0)
            order = there[np.argsort(self.scan_subjects[there], kind="stable")]
            sorted_subjects = self.scan_subjects[order]
            start = np.searchsorted(sorted_subjects, self.scan_subjects, side="left")
            grouped[name] = (order, start, np.searchsorted(sorted_subjects, self.scan_subjects, side="right") - start)
        return grouped

    def take_cases(self, rows: Rows) -> Cases:
        """A batch of labelled cases."""
        images, shown = {}, {}
        for name, scans in self.case_scans.items():
            images[name], shown[name] = self._images(scans[rows], self.embeddings.get(name))
        clinical = None if self.clinical is None else torch.from_numpy(self.clinical[rows])
        recorded = None if self.recorded is None else torch.from_numpy(self.recorded[rows])
        return Cases(images, shown, clinical, recorded, torch.from_numpy(self.labels[rows]))

    def _images(self, rows: Rows, embeddings: NDArray[np.float32] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 images (..., 1, H, W), black where there is no scan, and where there is one (...); or embeddings."""
        assert self.pixels is not None
        shown = rows >= 0
        source = self.pixels.values[:, None] if embeddings is None else embeddings
        images = np.zeros((*rows.shape, *source.shape[1:]), dtype=source.dtype)
        images[shown] = source[rows[shown]]
        return torch.from_numpy(images), torch.from_numpy(shown)

    def survey(self) -> Survey:
        """Sums and counts of this site; those of features over training cases only."""
        train = self.rows_of_cases(TRAIN)
        values = np.zeros((0, self.numeric_features), dtype=np.float64)
        if self.clinical is not None:
            values = self.clinical[train, : self.numeric_features].astype(np.float64)
        present = ~np.isnan(values)
        known = np.where(present, values, 0.0)
        table = None if self.pixels is None else self.pixels.table["modality"]
        return Survey(
            patients=len(self.subjects),
            oct_scans=0 if table is None or "oct" not in self.scans else int((table == "OCT").sum()),
            ir_scans=0 if table is None or "ir" not in self.scans else int((table == "IR").sum()),
            quarantined=0 if self.pixels is None else len(self.pixels.quarantined),
            labelled=len(self.labels),
            positive=int(self.labels.sum()),
            train_cases=len(train),
            train_positive=int(self.labels[train].sum()),
            clinical_cases=0 if self.recorded is None else int(self.recorded.sum()),
            counts=tuple(int(n) for n in present.sum(axis=0)),
            sums=tuple(float(x) for x in known.sum(axis=0)),
            squares=tuple(float(x) for x in (known**2).sum(axis=0)),
        )

    def check_trainable(self) -> None:
        """Raise ``SiteError`` when this site cannot fine-tune: no labelled cases that train, or one class only."""
        labels = self.labels[self.rows_of_cases(TRAIN)]
        self.check_split(TRAIN)
        if labels.min() == labels.max():
            remedy = "This site can pretrain; leave it out of fine-tuning or choose a longer horizon."
            value = f"{len(labels)} case(s) of one class"
            raise OwnDataError(f"site {self.name}: labels", "must hold both classes", value=value, remedy=remedy)

    def check_pretrainable(self) -> None:
        """Raise ``SiteError`` when this site has no scan to pretrain on."""
        if not len(self.rows_of_scans(TRAIN)):
            remedy = "Import scans, or set pretrain.rounds=0."
            raise SiteError(f"site {self.name}: scans that train", "must not be empty", remedy=remedy)

    def check_evaluable(self) -> None:
        """Raise ``SiteError`` when no labelled case is held out."""
        self.check_split(HELD_OUT)

    def check_split(self, split: str) -> None:
        """Raise ``SiteError`` when no labelled case is in a split."""
        if not len(self.rows_of_cases(split)):
            remedy = f"Label more patients, or raise splits.{split}."
            raise SiteError(f"site {self.name}: split {split}", "must not be empty", remedy=remedy)


@lru_cache(maxsize=64)
def open_store(path: Path, study: Study) -> SiteStore:
    """Read, check and decode a site folder for a study; kept for the life of the process.

    Studies that differ only in how they learn have one store, as long as the folder stays as it is.

    Raises:
        SiteError: the folder breaks the contract, contradicts the study, or has too many unreadable scans.
    """
    tables = _digest_of_tables(path, study.task.name)
    _check(path, tables)
    # All of the study that is asked for here; the rest is as in any study.
    of_data = Study(
        seed=study.seed,
        modalities=study.modalities,
        task=study.task,
        images=study.images,
        features=study.features,
        splits=study.splits,
    )
    settings = read_settings(path)
    return replace(_read(path, of_data, settings.quarantine_limit, tables), settings=settings)


@lru_cache(maxsize=64)
def _read(path: Path, study: Study, quarantine_limit: float, tables: str) -> SiteStore:
    folder = SiteFolder(path)
    dataset, events = folder.dataset(), folder.events()
    horizon = dataset.horizons_days.get(study.task.name, study.task.horizon_days)
    if horizon != study.task.horizon_days:
        rule = f"must be the study's task.horizon_days ({study.task.horizon_days})"
        remedy = "Label the site again, or set task.horizon_days."
        raise SiteError(f"{dataset.site}: horizon of {study.task.name}", rule, value=horizon, remedy=remedy)
    labels, fixed, key = folder.labels(study.task.name), folder.subject_splits(), split_key(study)
    pixels, scans, case_scans = None, {}, {}
    scan_subjects, scan_splits = np.empty(0, dtype=np.int64), np.empty(0, dtype=object)
    if study.image_modalities:
        pixels = open_pixels(folder, study.images.height, study.images.width)
        _check_quarantine(pixels, quarantine_limit, dataset.site)
        eyes = _eyes(pixels.table, study)
        scans = {name: eyes[name.upper()].to_numpy(np.int64) for name in study.image_modalities}
        scan_subjects = eyes["subject_id"].to_numpy(np.int64)
        scan_splits = assign_splits(eyes["subject_id"], study.splits, key, fixed)
        case_scans = _scans_of_cases(pixels.table, labels, study)
    clinical = recorded = None
    if CLINICAL in study.modalities:
        check_units(dataset, events, study.features)
        clinical, recorded = clinical_inputs(events, labels, study.features)
    index = folder.images()
    if tables != _digest_of_tables(path, study.task.name):
        raise SiteError(str(path), "must not change while it is read", remedy="Let imports end first.")
    readable = "" if pixels is None else "\n".join(sorted(pixels.table["image_id"].astype(str)))
    return SiteStore(
        name=dataset.site,
        settings=SiteSettings(),  # those of the moment come with the store
        pixels=pixels,
        data_digest=hashlib.sha256(f"{tables}\n{readable}".encode()).hexdigest(),
        subjects=np.union1d(events["subject_id"].to_numpy(np.int64), index["subject_id"].to_numpy(np.int64)),
        scans=scans,
        scan_subjects=scan_subjects,
        scan_splits=scan_splits,
        case_scans=case_scans,
        clinical=clinical,
        recorded=recorded,
        labels=labels["boolean_value"].to_numpy(np.float32),
        case_splits=assign_splits(labels["subject_id"], study.splits, key, fixed),
        case_subjects=labels["subject_id"].to_numpy(np.int64),
        case_times=labels["prediction_time"].to_numpy(),
        numeric_features=len(numeric_names(study)),
    )


@lru_cache(maxsize=64)
def _check(path: Path, tables: str) -> None:
    """Raise ``SiteError`` for a folder that breaks the contract; one that keeps it is not asked again for each study.

    Args:
        tables: digest of the folder's tables.
    """
    check_site(SiteFolder(path))


def _digest_of_tables(path: Path, task: str) -> str:
    found = hashlib.sha256()
    names = ("dataset.yaml", "events.parquet", "imaging/index.parquet", "subject_splits.parquet")
    for name in (*names, f"labels/{task}.parquet"):
        if (path / name).exists():
            with (path / name).open("rb") as stream:
                found.update(f"{name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()


def _check_quarantine(pixels: Pixels, limit: float, site: str) -> None:
    bad, total = len(pixels.quarantined), len(pixels.quarantined) + len(pixels.table)
    if bad > limit * total:
        for scan in pixels.quarantined.itertuples():  # here only: a file's name may name a patient
            log.warning("%s %s", scan.path, scan.reason)
        rule = f"must be at most {limit:.0%} of all (site.yaml: quarantine_limit)"
        remedy = "The log of the site names them."
        raise OwnDataError(f"site {site}: unreadable scans", rule, value=bad, remedy=remedy)


def _eyes(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """One row an eye at a visit: its patient, and its pixel rows under OCT and IR (-1 where there is none)."""
    table = table.assign(row=np.arange(len(table)))
    table = table[table["modality"].str.lower().isin(study.image_modalities)]
    table["eye_visit"] = table["pair_id"].where(table["pair_id"].notna(), "single " + table["image_id"].astype(str))
    wide = table.pivot_table(index=["eye_visit", "subject_id"], columns="modality", values="row", aggfunc="first")
    return wide.reindex(columns=["OCT", "IR"]).fillna(-1).astype(np.int64).reset_index()


def _scans_of_cases(table: pd.DataFrame, labels: pd.DataFrame, study: Study) -> dict[str, Rows]:
    """Pixel rows (N, K) of the scans within the window up to each prediction time, newest of each eye first."""
    scans = table[["subject_id", "eye", "acquired_at", "modality"]].assign(row=np.arange(len(table)))
    cases = labels[["subject_id", "prediction_time"]].assign(case=np.arange(len(labels)))
    both = cases.merge(scans, on="subject_id")
    age = both["prediction_time"] - both["acquired_at"]
    window = pd.Timedelta(days=study.images.window_days)
    both = both[(age >= pd.Timedelta(0)) & (age <= window)]
    both = both.sort_values(["case", "modality", "acquired_at", "eye"], ascending=[True, True, False, True])
    both["turn"] = both.groupby(["case", "modality", "eye"]).cumcount()
    both = both.sort_values(["case", "modality", "turn", "eye"])
    both["place"] = both.groupby(["case", "modality"]).cumcount()
    both = both[both["place"] < study.images.per_case]
    rows = {}
    for name in study.image_modalities:
        chosen = both[both["modality"] == name.upper()]
        rows[name] = np.full((len(labels), study.images.per_case), -1, dtype=np.int64)
        rows[name][chosen["case"].to_numpy(), chosen["place"].to_numpy()] = chosen["row"].to_numpy()
    return rows
