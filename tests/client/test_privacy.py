"""Does a site of a private study let out only what the plan pays for, and the same again after an interruption?"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn

from client import ledger, work
from client.secret import SECRET
from client.store import open_store
from server.state import State, load_state
from server.study import run_study
from shared.config import FINETUNE, PRETRAIN, Study
from shared.errors import ConfigError, SiteError
from shared.keys import write_secret
from shared.messages import Task, decode_update, update_content
from shared.objectives import registry
from shared.objectives.objective import Objective
from shared.objectives.registry import build_objective
from shared.privacy import PrivacyPlan
from shared.site_folder import SUBJECT_SPLITS, write_table
from shared.statistics import Statistics
from shared.weights import Weights, read_weights
from simulation.grid import LocalGrid
from tests.factories import make_study, small_site

PRIVATE: dict[str, Any] = {
    "privacy": {"kind": "patient_dpsgd", "target_epsilon": 30.0, "delta": 1e-3, "sampling_rate": 0.5},
    "objective": {"kind": "mae", "patch": 8, "decoder_width": 8},
    "finetune": {"rounds": 2, "select": "last", "site_intercept": True},
    "pretrain": {"rounds": 1},
}
STUDY = make_study(PRIVATE)
SPLITS = {subject: ("train", "train", "tuning", "held_out")[subject % 4] for subject in range(1, 13)}


def site_at(path: Path, **changes: Any) -> Path:
    tables = small_site(path.name, **changes)
    folder = tables.write(path).path
    frame = pd.DataFrame({"subject_id": list(SPLITS), "split": list(SPLITS.values())})
    write_table(folder / "subject_splits.parquet", frame, SUBJECT_SPLITS)
    write_secret(folder / SECRET, bytes(range(32)))  # a chance secret's noise may leave three cases where they were
    return folder


@pytest.fixture
def north(tmp_path: Path) -> Iterator[Path]:
    yield site_at(tmp_path / "north")
    open_store.cache_clear()


def task_of(stage: str, study: Study = STUDY) -> Task:
    statistics = Statistics.neutral(study)
    weights = read_weights(build_objective(study, PRETRAIN if stage == PRETRAIN else FINETUNE, statistics))
    trains = stage in (PRETRAIN, FINETUNE)
    split = "held_out" if stage == "evaluate" else ""
    return Task(study, stage, int(trains), 2 * int(trains), split, statistics, weights)


def test_a_site_refuses_a_model_whose_patients_influence_each_other(
    north: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, drawn = task_of(FINETUNE), registry._drawn

    def with_batch_norm(*arguments: Any) -> Objective:
        objective = drawn(*arguments)
        objective.add_module("unseen", nn.BatchNorm2d(3))  # as a model of some later timm might have one
        return objective

    monkeypatch.setattr(registry, "_drawn", with_batch_norm)
    work._built_objective.cache_clear()
    with pytest.raises(ConfigError, match="must keep no statistics of a batch with privacy"):
        work.train_round(north, task)


def equal(a: Weights, b: Weights) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stage", [PRETRAIN, FINETUNE])
def test_an_update_tells_weights_and_sizes_and_survives_the_wire(north: Path, stage: str) -> None:
    task = task_of(stage)
    update = work.train_round(north, task)
    assert update.loss is None
    assert update.tuning.cases == 0
    assert update.examples == sum(split == "train" for split in SPLITS.values())
    back = decode_update(update_content(update), task.weights)
    assert back.loss is None
    assert equal(back.weights, update.weights)
    assert not equal(update.weights, task.weights)


@pytest.mark.parametrize("stage", [PRETRAIN, FINETUNE])
def test_a_repeated_task_has_the_same_answer_and_another_secret_another(
    north: Path, tmp_path: Path, stage: str
) -> None:
    task = task_of(stage)
    first, again = (work.train_round(north, task).weights for _ in range(2))
    assert equal(first, again)
    twin = Path(shutil.copytree(north, tmp_path / "twin" / "north"))
    assert equal(work.train_round(twin, task).weights, first)
    (twin / "state" / "privacy.key").unlink()
    other = work.train_round(twin, task).weights
    moved = [name for name in first if not np.array_equal(first[name], task.weights[name])]
    assert moved
    assert not any((first[name] == other[name]).all() for name in moved)


def test_repeated_surveys_and_scores_are_the_same_and_noised(north: Path) -> None:
    survey = Task(STUDY, "survey", 0, 0, "", None, {})
    assert work.survey(north, survey) == work.survey(north, survey)
    task = task_of("evaluate")
    one, same = (work.evaluate_split(north, task).scores for _ in range(2))
    assert np.array_equal(one.positives, same.positives)
    others = []
    for scale in (1.01, 1.02, 1.03, 1.04, 1.05):
        weights = {name: array * np.float32(scale) for name, array in task.weights.items()}
        others.append(work.evaluate_split(north, replace(task, weights=weights)).scores)
    assert all(scores.cases == one.cases == 3 for scores in others)
    assert len({(scores.positives.tobytes(), scores.negatives.tobytes()) for scores in (one, *others)}) > 1


def test_a_private_study_of_pretraining_alone_pays_for_its_survey(north: Path) -> None:
    study = make_study({**PRIVATE, "finetune.rounds": 0, "privacy.delta": 1e-5})
    told = work.survey(north, Task.to_survey(study)).survey
    exact = open_store(north, study).survey()
    assert PrivacyPlan.of(study).release_of("survey") is not None
    assert told.patients == exact.patients
    assert told.sums != exact.sums
    with ledger.accounted(north, Task.to_survey(study), 100.0):
        pass
    assert [entry.noise_multiplier is None for entry in ledger.entries(north)] == [False]


def test_a_site_of_one_class_does_not_say_so(tmp_path: Path) -> None:
    tables = small_site("north")
    tables.labels["detection"]["boolean_value"] = False
    path = tables.write(tmp_path / "north").path
    assert work.train_round(path, task_of(FINETUNE)).examples > 0


def test_the_own_intercept_does_not_depend_on_the_patients_but_by_the_noised_count(north: Path, tmp_path: Path) -> None:
    from client.privacy import privacy_of

    task = task_of(FINETUNE)
    store = open_store(north, STUDY)
    one = privacy_of(north, store, task)
    moved = {name: array + 1.0 for name, array in task.weights.items()}
    other = privacy_of(north, store, replace(task, weights=moved))
    model: Any = None  # not asked
    assert one.intercept(model, model) == other.intercept(model, model)


def test_a_delta_that_lets_out_a_whole_patient_is_refused(north: Path) -> None:
    study = make_study({**PRIVATE, "privacy.delta": 0.1})
    with pytest.raises(SiteError, match=r"privacy\.delta must be < 1 / patients of site north \(12\), got 0\.1"):
        work.train_round(north, task_of(FINETUNE, study))


def test_an_exempt_stage_is_as_without_privacy(north: Path) -> None:
    study = make_study({**PRIVATE, "privacy.exempt": ["pretrain", "evaluate"]})
    assert work.train_round(north, task_of(PRETRAIN, study)).loss is not None
    assert work.train_round(north, task_of(FINETUNE, study)).loss is None
    plain = make_study({**PRIVATE, "privacy": {"kind": "none"}})
    own, none = (
        work.evaluate_split(north, task_of("evaluate", replace(s, finetune=replace(s.finetune, site_intercept=False))))
        for s in (study, plain)
    )
    assert np.array_equal(own.scores.positives, none.scores.positives)


class _Stop(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], State]:
    """Two sites, and how their study ends."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    sites = [site_at(folder / "sites" / name) for name in ("north", "south")]
    return sites, run_study(STUDY, LocalGrid(sites), folder / "whole")


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_private_study_that_was_interrupted_ends_as_one_that_was_not(
    tmp_path: Path, uninterrupted: tuple[list[Path], State], after: int
) -> None:
    sites, whole = uninterrupted
    seen = 0

    def stop(record: object) -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            raise _Stop

    with pytest.raises(_Stop):
        run_study(STUDY, LocalGrid(sites), tmp_path / "cut", stop)
    work._built_objective.cache_clear()
    resumed = run_study(STUDY, LocalGrid(sites), tmp_path / "cut")
    assert equal(whole.weights, resumed.weights)
    assert whole.surveys == resumed.surveys
    for site, scores in whole.evaluations.items():
        assert np.array_equal(scores.positives, resumed.evaluations[site].positives)
    assert [record.loss for record in load_state(tmp_path / "cut", STUDY).records] == [None] * 5
