"""Are frozen encoders run once for all rounds, and is what the heads learn from them the same?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client import embeddings, work
from client.embeddings import with_embeddings
from client.evaluation import predict
from client.store import open_store
from shared.config import Study
from shared.messages import Task
from shared.models import multimodal
from shared.objectives.registry import build_objective
from shared.objectives.supervised import SupervisedObjective
from shared.statistics import Statistics
from shared.weights import read_weights
from tests.factories import make_study, small_site

CPU = torch.device("cpu")
FROZEN = make_study({"pretrain.rounds": 1, "finetune.encoder_lr": 0.0, "finetune.rounds": 2})


def task_of(study: Study, number: int, split: str = "") -> Task:
    statistics = Statistics.neutral(study)
    weights = read_weights(build_objective(study, "finetune", statistics))
    return Task(study, "evaluate" if split else "finetune", number, 2, split, statistics, weights)


@pytest.fixture
def north(tmp_path: Path) -> Path:
    return small_site("north", patients=24).write(tmp_path / "north").path


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of scans, of every use of an encoder from now on."""
    seen: list[int] = []
    encode = multimodal.encode

    def encoded(encoder: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return encode(encoder, images)

    for module in (multimodal, embeddings):
        monkeypatch.setattr(module, "encode", encoded)
    return seen


@pytest.mark.parametrize("fusion", ["late", "intermediate"])
def test_predictions_are_those_of_the_scans(north: Path, fusion: str) -> None:
    study = replace(FROZEN, model=replace(FROZEN.model, fusion=fusion))
    store = open_store(north, study)
    objective = build_objective(study, "finetune", Statistics.neutral(study))
    assert isinstance(objective, SupervisedObjective)
    embedded = with_embeddings(store, study, objective, CPU)
    assert embedded.embeddings
    rows = np.arange(len(store.labels))
    expected = predict(objective.model, store, rows, CPU)
    np.testing.assert_allclose(predict(objective.model, embedded, rows, CPU), expected, rtol=1e-4, atol=1e-5)


def test_frozen_encoders_see_each_scan_once(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, seen = open_store(north, FROZEN), counted(monkeypatch)
    work.train_round(north, task_of(FROZEN, 1))
    scans = [len(np.unique(rows[rows >= 0])) for rows in store.case_scans.values()]
    assert sum(seen) == sum(scans)
    work.train_round(north, task_of(FROZEN, 2))
    work.evaluate_split(north, task_of(FROZEN, 0, "held_out"))
    assert sum(seen) == sum(scans)


def test_other_weights_are_other_embeddings(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = task_of(FROZEN, 1), counted(monkeypatch)
    work.train_round(north, task)
    once = sum(seen)
    encoder = next(name for name in task.weights if "encoders." in name)
    work.train_round(north, replace(task, weights=task.weights | {encoder: task.weights[encoder] + 1.0}))
    assert sum(seen) == 2 * once


def test_encoders_leave_as_they_came_and_heads_learn(north: Path) -> None:
    task = task_of(FROZEN, 1)
    update = work.train_round(north, task)
    for name, array in update.weights.items():
        assert np.array_equal(array, task.weights[name]) == ("encoders." in name or "absent" in name), name


@pytest.mark.parametrize("changes", [{"finetune.encoder_lr": 0.1}, {"pretrain.rounds": 0}])
def test_encoders_that_are_trained_see_scans(north: Path, changes: dict[str, object]) -> None:
    study = make_study({"pretrain.rounds": 1, "finetune.encoder_lr": 0.0, **changes})
    objective = build_objective(study, "finetune", Statistics.neutral(study))
    assert not with_embeddings(open_store(north, study), study, objective, CPU).embeddings
