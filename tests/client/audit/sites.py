"""Which sites and models does an audit meet in tests? Labels of chance, and a code of each patient's own to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shared.config import FINETUNE, Study
from shared.models.saved import save_model
from shared.objectives.registry import build_objective
from shared.site_folder import SUBJECT_SPLITS, write_table
from shared.statistics import Statistics
from shared.weights import Weights, read_weights
from tests.factories import VISIT, EventRow, empty_site, make_events, make_labels, make_study

PATIENTS = 220


def chance_site(folder: Path, patients: int = PATIENTS, seed: int = 0) -> Path:
    """A site whose outcomes are chance; each patient is born in some year and has one code that nobody else has.

    Every third patient has two cases.
    """
    random, tables = np.random.default_rng(seed), empty_site(folder.name)
    subjects, rows = range(1, patients + 1), list[EventRow]()
    for subject, own in zip(subjects, random.permutation(patients), strict=True):
        rows.append((subject, f"{random.integers(1930, 1990)}-01-01", "MEDS_BIRTH", None))
        rows.append((subject, VISIT - pd.Timedelta(days=30), _code(own), None))
    labels = [(subject, VISIT, bool(random.random() < 0.5)) for subject in subjects]
    labels += [(subject, VISIT + pd.Timedelta(days=1), positive) for subject, _, positive in labels[::3]]
    tables.events, tables.labels["detection"] = make_events(rows), make_labels(labels)
    return tables.write(folder).path


def _code(own: int) -> str:
    return f"LOCAL//{own:04d}"


def overfit_study(changes: dict[str, Any] | None = None) -> Study:
    """Learns patients by heart: by their own codes."""
    codes = [{"name": f"c{own}", "codes": [_code(own)]} for own in range(PATIENTS)]
    return _study({"features": {"age": False, "numeric": [], "codes": codes}} | (changes or {}))


def narrow_study() -> Study:
    """Has no room to learn anybody by heart: one weight, of the age."""
    return _study({"features": {"age": True, "numeric": [], "codes": []}})


def _study(changes: dict[str, Any]) -> Study:
    settings: dict[str, Any] = {
        "modalities": ["clinical"],
        "model": {"clinical": {"hidden": [], "dropout": 0.0}, "dropout": 0.0, "branch_width": 4},
        "pretrain.rounds": 0,
        "finetune": {"rounds": 1, "epochs": 12.0, "batch_size": 40, "lr": 0.05, "select": "last"},
        "splits": {"train": 0.5, "tuning": 0.0, "held_out": 0.5},
    }
    return make_study(settings | changes)


def neutral(study: Study) -> Statistics:
    """Statistics of nobody."""
    return Statistics((60.0,), (15.0,)) if study.features.age else Statistics.neutral(study)


def initial(study: Study) -> Weights:
    """Where a study's fine-tuning begins."""
    return read_weights(build_objective(study, FINETUNE, neutral(study)))


def save(file: Path, study: Study, weights: Weights) -> Path:
    """A model's file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_model(file, study, neutral(study), weights)
    return file


def fix_splits(site: Path, splits: dict[int, str]) -> None:
    """Splits that the site fixed by hand."""
    frame = pd.DataFrame({"subject_id": list(splits), "split": list(splits.values())})
    write_table(site / "subject_splits.parquet", frame, SUBJECT_SPLITS)
