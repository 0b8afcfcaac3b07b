"""Which sites and models does an audit meet in tests? Records of noise with labels of chance, to learn by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shared.checkpoints import save_model
from shared.config import Study
from shared.objectives.registry import FINETUNE, build_objective
from shared.site_folder import SUBJECT_SPLITS, write_table
from shared.statistics import Statistics
from shared.weights import Weights, read_weights
from tests.factories import VISIT, EventRow, empty_site, make_events, make_labels, make_study

CODES = [f"LOINC//{place}" for place in range(90)]


def noise_site(folder: Path, patients: int, seed: int = 0) -> Path:
    """A site whose records and labels are independent; every third patient has two cases."""
    random, tables = np.random.default_rng(seed), empty_site(folder.name)
    subjects, rows = range(1, patients + 1), list[EventRow]()
    labels = [(subject, VISIT, bool(random.random() < 0.5)) for subject in subjects]
    for subject in subjects:
        rows.append((subject, "1950-01-01", "MEDS_BIRTH", None))
        rows += [(subject, VISIT - pd.Timedelta(days=30), code, float(random.normal())) for code in CODES]
    labels += [(subject, VISIT + pd.Timedelta(days=1), positive) for subject, _, positive in labels[::3]]
    tables.events, tables.labels["detection"] = make_events(rows), make_labels(labels)
    tables.dataset.units.clear()
    tables.dataset.units.update(dict.fromkeys(CODES, "1"))
    return tables.write(folder).path


def noise_study(changes: dict[str, Any] | None = None, inputs: int = len(CODES)) -> Study:
    """Learns the records by heart: as many inputs as patients, a wide perceptron, no dropout."""
    numeric = [{"name": f"f{place}", "code": code, "unit": "1"} for place, code in enumerate(CODES[:inputs])]
    settings: dict[str, Any] = {
        "modalities": ["clinical"],
        "features": {"age": False, "numeric": numeric, "codes": []},
        "model": {"clinical": {"hidden": [64], "dropout": 0.0}, "dropout": 0.0, "branch_width": 16},
        "pretrain.rounds": 0,
        "finetune": {"rounds": 1, "epochs": 8.0, "batch_size": 25, "lr": 0.01, "select": "last"},
        "splits": {"train": 0.35, "tuning": 0.0, "held_out": 0.65},
    }
    return make_study(settings | (changes or {}))


def initial(study: Study) -> Weights:
    """Where a study's fine-tuning begins."""
    return read_weights(build_objective(study, FINETUNE, Statistics.neutral(study)))


def save(file: Path, study: Study, weights: Weights) -> Path:
    """A model's file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_model(file, study, Statistics.neutral(study), weights)
    return file


def fix_splits(site: Path, splits: dict[int, str]) -> None:
    """Splits that the site fixed by hand."""
    frame = pd.DataFrame({"subject_id": list(splits), "split": list(splits.values())})
    write_table(site / "subject_splits.parquet", frame, SUBJECT_SPLITS)
