"""What does a site do with a task? Survey, train or evaluate its own store; everything but the wire."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from client.audit.gate import Gate, NoGate
from client.embeddings import with_embeddings
from client.optimizers import build_optimizer
from client.privacy import Privacy, privacy_of
from client.splits import HELD_OUT, TRAIN, TUNING
from client.store import Rows, SiteStore, open_store
from client.training import train
from shared.config import FINETUNE, PRETRAIN, Study
from shared.errors import MessageError
from shared.inputs import Batch
from shared.messages import Evaluation, SurveyReply, Task, Update
from shared.metrics import empty_scores
from shared.objectives.objective import Objective
from shared.objectives.registry import build_objective
from shared.objectives.supervised import SupervisedObjective
from shared.statistics import Statistics
from shared.weights import read_weights, write_weights


def survey(folder: Path, task: Task) -> SurveyReply:
    """Sums and counts of the site; raises ``SiteError`` for a folder that cannot serve the study."""
    store = open_store(folder, task.study)
    return SurveyReply(store.name, privacy_of(folder, store, task).survey())


def train_round(folder: Path, task: Task) -> Update:
    """One round of training from the task's weights; raises ``SiteError`` or ``MessageError``."""
    started = time.perf_counter()
    store, study = open_store(folder, task.study), task.study
    device, objective = _prepare(store, task)
    store = with_embeddings(store, study, objective, device)
    privacy = privacy_of(folder, store, task)
    tuning, take, stage = empty_scores(), _taker(store, task.stage, privacy.seed), study.stage(task.stage)
    gate: Gate = NoGate()
    if isinstance(objective, SupervisedObjective):
        privacy.check_trainable()
        rows, subjects = store.rows_of_cases(TRAIN), store.case_subjects
        _own_intercept(objective, privacy, task, device)
        tuning = privacy.tuning(objective.model, device)
        gate = privacy.gate(objective.model, device)
    else:
        store.check_pretrainable()
        rows, subjects = store.rows_of_scans(TRAIN), store.scan_subjects
    optimizer = build_optimizer(objective, study, stage)
    gradients = privacy.gradients(take, subjects, stage, device)
    trained = train(objective, rows, gradients, stage, optimizer, privacy.seed, task.round, device)
    gate.check()  # before anything of this round can leave
    seconds = time.perf_counter() - started
    return Update(
        site=store.name,
        stage=task.stage,
        round=task.round,
        weights=read_weights(objective),
        examples=trained.examples,
        loss=trained.loss,
        tuning=tuning,
        seconds=seconds,
    )


def evaluate_split(folder: Path, task: Task) -> Evaluation:
    """Scores of the task's weights on one split of the site; raises ``SiteError`` or ``MessageError``."""
    started = time.perf_counter()
    if task.split not in (TUNING, HELD_OUT):
        raise MessageError("task.split", f"must be {TUNING} or {HELD_OUT}", value=task.split)
    store = open_store(folder, task.study)
    device, objective = _prepare(store, task)
    assert isinstance(objective, SupervisedObjective)
    if task.split == HELD_OUT:
        store.check_evaluable()
    store = with_embeddings(store, task.study, objective, device)
    privacy = privacy_of(folder, store, task)
    _own_intercept(objective, privacy, task, device)
    scores = privacy.scores(objective.model, task.split, device)
    return Evaluation(store.name, scores, time.perf_counter() - started)


def _taker(store: SiteStore, stage: str, seed: int) -> Callable[[Rows], Batch]:
    if stage == FINETUNE:
        return store.take_cases
    return partial(store.take_scans, random=np.random.default_rng(seed))


def _prepare(store: SiteStore, task: Task) -> tuple[torch.device, Objective]:
    """The stage's objective with the task's weights, on the site's device."""
    if task.statistics is None:
        raise MessageError("task.statistics", f"must be given in stage {task.stage}")
    stage = PRETRAIN if task.stage == PRETRAIN else FINETUNE
    device = torch.device(store.settings.device)
    objective = _built_objective(task.study, stage, task.statistics, device)
    write_weights(objective, task.weights)
    return device, objective


@lru_cache(maxsize=4)
def _built_objective(study: Study, stage: str, statistics: Statistics, device: torch.device) -> Objective:
    """Kept between rounds: building a model by name can take longer than a small site's round."""
    return build_objective(study, stage, statistics).to(device)


def _own_intercept(objective: SupervisedObjective, privacy: Privacy, task: Task, device: torch.device) -> None:
    objective.model.intercept = 0.0
    if task.study.finetune.site_intercept:
        objective.model.intercept = privacy.intercept(objective.model, device)
