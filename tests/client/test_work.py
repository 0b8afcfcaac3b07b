"""Is what a site does with a task a function of the task and its folder, and of nothing done before?"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from client import work
from client.store import open_store
from shared.config import Study
from shared.errors import MessageError, SiteError
from shared.messages import Task, Update
from shared.objectives.registry import build_objective
from shared.site_folder import SUBJECT_SPLITS, write_table
from shared.statistics import Statistics
from shared.weights import read_weights
from tests.factories import encode_image, make_pixels, make_study, small_site

STUDY = make_study({"finetune.augmentation": {"flip": 0.5}, "pretrain.augmentation": {"flip": 0.5, "noise": 0.1}})
SPLITS = {i: ("train", "train", "train", "tuning", "held_out", "held_out")[i % 6] for i in range(100)}


def site_at(folder: Path, name: str = "north", first: int = 1) -> Path:
    path = small_site(name, first=first).write(folder / name).path
    frame = pd.DataFrame({"subject_id": list(SPLITS), "split": list(SPLITS.values())})
    write_table(path / "subject_splits.parquet", frame, SUBJECT_SPLITS)
    return path


def task_of(stage: str, study: Study = STUDY, number: int = 1) -> Task:
    statistics = Statistics((70.0, 106.0), (5.0, 4.0), 0.5)
    weights = read_weights(build_objective(study, "pretrain" if stage == "pretrain" else "finetune", statistics))
    return Task(study, stage, number, 4, "held_out" if stage == "evaluate" else "", statistics, weights)


def same_update(a: Update, b: Update) -> bool:
    return (a.examples, a.loss) == (b.examples, b.loss) and all(
        np.array_equal(a.weights[name], b.weights[name]) for name in a.weights
    )


@pytest.fixture
def north(tmp_path: Path) -> Path:
    return site_at(tmp_path)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_round_depends_on_the_task_and_the_site_alone(north: Path, tmp_path: Path, stage: str) -> None:
    """Whatever round, stage or site was worked on before in this process, and wherever the folder lies."""
    task = task_of(stage)
    first = work.train_round(north, task)
    south = work.train_round(site_at(tmp_path, "south", first=31), task)
    work.train_round(north, task_of("finetune" if stage == "pretrain" else "pretrain"))
    work.train_round(north, task_of(stage, number=2))
    torch.manual_seed(77)
    assert same_update(work.train_round(north, task), first)
    elsewhere = site_at(tmp_path / "elsewhere")
    assert same_update(work.train_round(elsewhere, task), first)
    assert not same_update(south, first)


def test_a_site_that_trained_with_frozen_encoders_trains_them_when_asked_again(north: Path) -> None:
    frozen = make_study({"finetune.encoder_lr": 0.0})
    task = task_of("finetune", frozen)
    update = work.train_round(north, task)
    moved = {name for name in update.weights if not np.array_equal(update.weights[name], task.weights[name])}
    assert moved
    assert not any("encoders." in name for name in moved)


@pytest.mark.parametrize("change", ["round", "site", "seed"])
def test_every_round_site_and_seed_has_its_own_randomness(north: Path, tmp_path: Path, change: str) -> None:
    """On a constant rate and the same data, so that nothing but the draws differs."""
    study = make_study({"finetune.schedule": "constant", "finetune.warmup": 0.0})
    task = task_of("finetune", study)
    if change == "round":
        other = work.train_round(north, replace(task, round=2))
    elif change == "site":
        other = work.train_round(site_at(tmp_path / "same", "twin"), task)
    else:
        other = work.train_round(north, replace(task, study=replace(study, seed=2)))
    assert not same_update(work.train_round(north, task), other)


def test_a_training_round_reports_what_it_did(north: Path) -> None:
    task = task_of("finetune")
    update = work.train_round(north, task)
    assert update.site == "north"
    assert update.examples == 6
    assert update.tuning.cases == 2
    assert update.seconds > 0
    assert update.weights.keys() == task.weights.keys()
    assert all(np.isfinite(array).all() for array in update.weights.values())


def test_the_tuning_scores_are_of_the_weights_that_came(north: Path) -> None:
    task = task_of("finetune")
    update = work.train_round(north, task)
    scored = work.evaluate_split(north, replace(task, stage="evaluate", round=0, rounds=0, split="tuning")).scores
    assert scored.log_loss == pytest.approx(update.tuning.log_loss, rel=1e-6)


def test_pretraining_uses_the_unlabelled_too_and_no_patient_that_is_kept_out(north: Path) -> None:
    update = work.train_round(north, task_of("pretrain"))
    assert update.examples == sum(SPLITS[subject] == "train" for subject in range(1, 13))
    assert update.tuning.cases == 0


def test_pixels_of_kept_out_patients_do_not_reach_the_weights(tmp_path: Path) -> None:
    """Held-out and tuning patients may be anything: pretraining and fine-tuning end in the same weights."""
    updates = []
    for folder, noise in (("a", 0), ("b", 500)):
        tables = small_site()
        for row in tables.images.itertuples():
            if SPLITS[int(row.subject_id)] != "train" and noise:  # type: ignore[call-overload]
                tables.files[str(row.path)] = encode_image(make_pixels(noise + int(row.Index)))  # type: ignore[call-overload]
        tables.images["sha256"] = [hashlib.sha256(tables.files[path]).hexdigest() for path in tables.images["path"]]
        path = tables.write(tmp_path / folder / "north").path
        frame = pd.DataFrame({"subject_id": list(SPLITS), "split": list(SPLITS.values())})
        write_table(path / "subject_splits.parquet", frame, SUBJECT_SPLITS)
        updates.append([work.train_round(path, task_of(stage)) for stage in ("pretrain", "finetune")])
    for one, other in zip(*updates, strict=True):
        assert same_update(one, other)
    assert updates[0][1].tuning.log_loss != updates[1][1].tuning.log_loss


def test_a_site_intercept_changes_the_scores_and_does_not_leave(north: Path) -> None:
    own = make_study({"finetune.site_intercept": True})
    task = task_of("evaluate", own)
    shifted = {name: array - 3.0 if name == "model.fuse.bias" else array for name, array in task.weights.items()}
    one, other = (work.evaluate_split(north, replace(task, weights=w)).scores for w in (task.weights, shifted))
    assert one.log_loss == pytest.approx(other.log_loss, rel=0.1)  # but for the half case that keeps it finite
    common = replace(task, study=make_study(), weights=shifted)
    assert work.evaluate_split(north, common).scores.log_loss > 1.5 * one.log_loss
    assert work.train_round(north, task_of("finetune", own)).weights.keys() == task.weights.keys()


def test_the_survey_is_that_of_the_store(north: Path) -> None:
    reply = work.survey(north, Task(STUDY, "survey", 0, 0, "", None, {}))
    assert (reply.site, reply.survey) == ("north", open_store(north, STUDY).survey())


@pytest.mark.parametrize("split", ["train", "", "all"])
def test_only_kept_out_splits_are_scored(north: Path, split: str) -> None:
    with pytest.raises(MessageError, match=r"task\.split must be tuning or held_out, got"):
        work.evaluate_split(north, replace(task_of("evaluate"), split=split))


def test_training_needs_statistics(north: Path) -> None:
    with pytest.raises(MessageError, match=r"task\.statistics must be given in stage finetune"):
        work.train_round(north, replace(task_of("finetune"), statistics=None))


def test_weights_of_another_model_are_refused(north: Path) -> None:
    with pytest.raises(MessageError, match="must have the names of the model's tensors"):
        work.train_round(north, replace(task_of("finetune"), weights=task_of("pretrain").weights))


def test_a_site_without_labels_pretrains_but_does_not_fine_tune(tmp_path: Path) -> None:
    path = small_site(labelled=0).write(tmp_path / "s").path
    assert work.train_round(path, task_of("pretrain")).examples > 0
    with pytest.raises(SiteError, match="site north: split train must not be empty"):
        work.train_round(path, task_of("finetune"))
    with pytest.raises(SiteError, match="site north: split held_out must not be empty"):
        work.evaluate_split(path, task_of("evaluate"))
