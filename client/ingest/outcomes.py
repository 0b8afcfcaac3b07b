"""How do labels that an export states in a column of its own come into the site folder? As parts, like events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from client.ingest.events import EARLIEST, Number
from client.ingest.export import QUARANTINED, Why
from client.ingest.pseudonyms import IMPORTS
from shared.files import replacing
from shared.site_folder import LABELS, SiteFolder

_KEYS = ["subject_id", "prediction_time"]


@dataclass(frozen=True)
class LabelRows:
    """Labels as an export has them.

    Attributes:
        rows: ``patient`` (the hospital's id), ``prediction_time`` datetime64[us] without zone, ``boolean_value``.
        horizon_days: until when the outcome was looked for.
    """

    task: str
    rows: pd.DataFrame
    horizon_days: int


class Outcomes:
    """The labels of one import, by task: some 20 bytes a label in memory."""

    def __init__(self, last_day: date) -> None:
        self._last_day = last_day
        self._frames: dict[str, list[pd.DataFrame]] = {}
        self._settled: dict[str, pd.DataFrame] = {}
        self.horizons_days: dict[str, int] = {}
        self.left_out: Counter[Why] = Counter()

    def add(self, labels: LabelRows, number: Number) -> None:
        """More labels of a task; those without a patient or a date that can be are left out and counted."""
        rows = labels.rows
        end = pd.Timestamp(self._last_day) + pd.Timedelta(days=1)
        dated = (rows["prediction_time"] >= EARLIEST) & (rows["prediction_time"] < end)
        rows = rows[dated & (rows["patient"] != "")]
        lost = len(labels.rows) - len(rows)
        if lost:
            reason = "a label without a patient or a date that can be"
            self.left_out[Why(QUARANTINED, reason, f"task {labels.task}")] += lost
        ids, originals = pd.factorize(rows["patient"])
        numbers = np.array([number(str(original)) for original in originals], dtype=np.int64)
        frame = rows[["prediction_time", "boolean_value"]].astype({"boolean_value": bool})
        frame.insert(0, "subject_id", numbers[ids] if len(ids) else np.zeros(0, np.int64))
        self._frames.setdefault(labels.task, []).append(frame)
        self.horizons_days[labels.task] = labels.horizon_days

    def settle(self) -> None:
        """To be called when all were added: what contradicts itself is left out and counted."""
        for task in sorted(self._frames):
            self._settled[task] = without_contradictions(pd.concat(self._frames.pop(task)), self.left_out, task)

    def counts(self) -> dict[str, int]:
        """Labels by task."""
        return {task: len(frame) for task, frame in self._settled.items()}

    def ends(self) -> Iterator[pd.Timestamp]:
        """By when the outcomes of each task were known, but no later than the last day."""
        for task, frame in self._settled.items():
            if len(frame):
                end: pd.Timestamp = frame["prediction_time"].max() + pd.Timedelta(days=self.horizons_days[task])
                yield min(end.ceil("D"), pd.Timestamp(self._last_day))

    def write(self, site: SiteFolder, name: str) -> None:
        """Replace the parts of this import; a task that it no longer has loses its part."""
        for task, frame in self._settled.items():
            with replacing(_part(site, task, name), unless_equal=True) as draft:
                pq.write_table(_table(frame), draft)
        for folder in label_folders(site):
            if folder.name not in self._settled:
                (folder / f"{name}.parquet").unlink(missing_ok=True)


def join_labels(site: SiteFolder, counts: Counter[Why]) -> None:
    """Make ``labels/<task>.parquet`` of each task anew from its parts; of the last part, remove it."""
    for folder in label_folders(site):
        file = site.path / "labels" / f"{folder.name}.parquet"
        frames = [pq.read_table(part).to_pandas() for part in sorted(folder.glob("*.parquet"))]
        if not frames:
            file.unlink(missing_ok=True)
            folder.rmdir()
            continue
        with replacing(file, unless_equal=True) as draft:
            pq.write_table(_table(without_contradictions(pd.concat(frames), counts, folder.name)), draft)


def without_contradictions(frame: pd.DataFrame, counts: Counter[Why], task: str) -> pd.DataFrame:
    """Labels in order, one a patient and time; none where two say different things."""
    frame = frame.drop_duplicates().sort_values([*_KEYS, "boolean_value"], ignore_index=True)
    both = frame.duplicated(_KEYS, keep=False)
    if both.any():
        counts[Why(QUARANTINED, "labels that contradict each other", f"task {task}")] += int(both.sum())
    return frame[~both]


def label_folders(site: SiteFolder) -> list[Path]:
    """The folder of parts of each task."""
    return sorted(path for path in (site.path / IMPORTS / "labels").glob("*") if path.is_dir())


def _part(site: SiteFolder, task: str, name: str) -> Path:
    folder = site.path / IMPORTS / "labels" / task
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{name}.parquet"


def _table(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, schema=LABELS, preserve_index=False)
