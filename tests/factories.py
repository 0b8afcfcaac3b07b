"""How does a test get a site folder, a study or a batch? Small correct ones, to be changed one thing at a time."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from shared.config import Study
from shared.inputs import Cases, Scans
from shared.knobs import load
from shared.site_folder import Dataset, SiteFolder, write_site

SYSTOLIC, DIABETES, MALE = "LOINC//8480-6", "ICD10//E11", "SEX//M"
VISIT = pd.Timestamp("2020-06-01 10:00")
EventRow = tuple[int, object, str, float | None]  # subject, time or None, code, numeric value or None

STUDY: dict[str, Any] = {
    "name": "tiny",
    "images": {"height": 32, "width": 32},
    "features": {
        "age": True,
        "numeric": [{"name": "systolic", "code": SYSTOLIC, "unit": "mm[Hg]", "low": 50, "high": 300}],
        "codes": [{"name": "diabetes", "codes": [DIABETES]}, {"name": "male", "codes": [MALE]}],
    },
    "splits": {"train": 0.5, "tuning": 0.2, "held_out": 0.3},
    "model": {
        "image": {"name": "convnext_atto", "arguments": {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8]}},
        "clinical": {"hidden": [4]},
        "branch_width": 4,
    },
    "objective": {"kind": "simclr", "projection_width": 8},
    "pretrain": {"rounds": 1, "batch_size": 4},
    "finetune": {"rounds": 1, "batch_size": 4},
}


def make_study(changes: Mapping[str, Any] | None = None) -> Study:
    """A tiny valid study; ``changes`` by dotted name, such as ``{"finetune.rounds": 2}``. A tree is replaced whole."""
    return load(Study, changed(STUDY, changes or {}))


def changed(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with some settings at dotted names put in."""
    result = {key: changed(value, {}) if isinstance(value, Mapping) else value for key, value in data.items()}
    for name, value in changes.items():
        *parents, last = name.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = changed(value, {}) if isinstance(value, Mapping) else value
    return result


def make_events(rows: Sequence[EventRow]) -> pd.DataFrame:
    """An event table of (subject, time or None, code, numeric value or None)."""
    frame = pd.DataFrame(list(rows), columns=["subject_id", "time", "code", "numeric_value"])
    frame["time"] = pd.to_datetime(frame["time"]).astype("datetime64[us]")
    frame["text_value"] = pd.Series([None] * len(frame), dtype=object)
    return frame.astype({"subject_id": np.int64, "code": object, "numeric_value": np.float32})


def make_labels(rows: Sequence[tuple[int, object, bool]]) -> pd.DataFrame:
    """A label table of (subject, prediction time, outcome)."""
    frame = pd.DataFrame(list(rows), columns=["subject_id", "prediction_time", "boolean_value"])
    frame["prediction_time"] = pd.to_datetime(frame["prediction_time"]).astype("datetime64[us]")
    return frame.astype({"subject_id": np.int64, "boolean_value": bool})


def make_pixels(seed: int, height: int = 16, width: int = 16) -> NDArray[np.uint8]:
    """Some image, another for every seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def encode_image(pixels: NDArray[Any], kind: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@dataclass
class Tables:
    """What becomes a site folder; change a part, then ``write``."""

    dataset: Dataset
    events: pd.DataFrame
    images: pd.DataFrame
    labels: dict[str, pd.DataFrame]
    files: dict[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> SiteFolder:
        """The site folder on disk, valid or not."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        files = Path(tempfile.mkdtemp(prefix=".files-", dir=folder.parent)) / "files"
        files.mkdir()
        for path, content in self.files.items():
            (files / path).parent.mkdir(parents=True, exist_ok=True)
            (files / path).write_bytes(content)
        site = write_site(folder, self.dataset, self.events, self.images, self.labels, files)
        files.parent.rmdir()
        return site

    def add_image(
        self,
        subject: int,
        modality: str,
        eye: str = "R",
        time: object = VISIT,
        pair: str | None = None,
        content: bytes | None = None,
    ) -> str:
        """Put a scan in the index and its file beside it; returns the image id."""
        row = self.file_of(len(self.images), subject, modality, eye, time, pair, content)
        self.images = pd.DataFrame([*self.images.to_dict("records"), row])
        return str(row["image_id"])

    def file_of(
        self,
        number: int,
        subject: int,
        modality: str,
        eye: str = "R",
        time: object = VISIT,
        pair: str | None = None,
        content: bytes | None = None,
    ) -> dict[str, Any]:
        """Put the file of a scan there; returns what is the row ``number`` of the index, for whoever adds many."""
        image_id = f"image-{len(self.files):03d}"
        content = encode_image(make_pixels(number)) if content is None else content
        path = f"{subject}/{image_id}.png"
        self.files[path] = content
        return {
            "image_id": image_id,
            "subject_id": subject,
            "eye": eye,
            "acquired_at": pd.Timestamp(time).as_unit("us"),
            "modality": modality,
            "device": "A",
            "pair_id": pair,
            "path": path,
            "frame": 0,
            "height": 16,
            "width": 16,
            "spacing": None,
            "sha256": hashlib.sha256(content).hexdigest(),
            "quality": None,
        }


def empty_site(name: str = "north") -> Tables:
    """A site without a patient."""
    dataset = Dataset(
        site=name,
        extracted_at="2024-12-31",
        units={SYSTOLIC: "mm[Hg]"},
        horizons_days={"detection": 365},
    )
    columns = ["image_id", "subject_id", "eye", "acquired_at", "modality", "device", "pair_id", "path", "frame"]
    images = pd.DataFrame(columns=[*columns, "height", "width", "spacing", "sha256", "quality"])
    return Tables(dataset, make_events([]), images, {"detection": make_labels([])})


def small_site(
    name: str = "north",
    patients: int = 12,
    first: int = 1,
    modalities: Sequence[str] = ("OCT", "IR"),
    labelled: int | None = None,
) -> Tables:
    """A correct site: subjects ``first`` onwards, one visit each, every second one positive and every third diabetic.

    The scans of the right eye are a pair. A subject's systolic pressure is 100 + subject, a month before the visit.

    Args:
        labelled: how many patients have a label; all when None.
    """
    tables = empty_site(name)
    subjects = range(first, first + patients)
    rows: list[EventRow] = []
    scans: list[dict[str, Any]] = []
    for subject in subjects:
        rows.append((subject, "1950-01-01", "MEDS_BIRTH", None))
        rows.append((subject, None, MALE if subject % 2 else "SEX//F", None))
        rows.append((subject, VISIT - pd.Timedelta(days=30), SYSTOLIC, 100.0 + subject))
        if subject % 3 == 0:
            rows.append((subject, VISIT - pd.Timedelta(days=300), f"{DIABETES}.9", None))
        for modality in modalities:
            pair = f"pair-{subject}" if len(modalities) > 1 else None
            scans.append(tables.file_of(len(scans), subject, modality, pair=pair))
    if scans:
        tables.images = pd.DataFrame(scans)
    tables.events = make_events(rows)
    known = list(subjects)[: patients if labelled is None else labelled]
    tables.labels["detection"] = make_labels([(subject, VISIT, subject % 2 == 0) for subject in known])
    return tables


def make_cases(count: int = 4, *, scans: int = 2, size: int = 32, seed: int = 0, study: Study | None = None) -> Cases:
    """Cases with random scans, all shown, and random records, for ``study`` or the tiny one."""
    random = np.random.default_rng(seed)
    study = make_study() if study is None else study
    numeric = len(study.features.numeric) + int(study.features.age)
    clinical = np.concatenate(
        [
            random.normal(size=(count, numeric)),
            random.uniform(0, 3, size=(count, numeric)),
            random.integers(0, 2, size=(count, len(study.features.codes))),
        ],
        axis=1,
    ).astype(np.float32)
    images = {
        name: torch.from_numpy(random.integers(0, 256, (count, scans, 1, size, size), dtype=np.uint8))
        for name in ("oct", "ir")
    }
    return Cases(
        images=images,
        shown={name: torch.ones(count, scans, dtype=torch.bool) for name in images},
        clinical=torch.from_numpy(clinical),
        recorded=torch.ones(count, dtype=torch.bool),
        labels=torch.from_numpy((np.arange(count) % 2).astype(np.float32)),
    )


def make_scans(count: int = 4, *, size: int = 32, seed: int = 0) -> Scans:
    """Eyes with both scans, of random pixels, and another scan of each patient."""
    random = np.random.default_rng(seed)

    def draw() -> dict[str, torch.Tensor]:
        shape = (count, 1, size, size)
        return {name: torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8)) for name in ("oct", "ir")}

    return Scans(draw(), {name: torch.ones(count, dtype=torch.bool) for name in ("oct", "ir")}, draw())
