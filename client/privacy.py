"""What may a site tell, and how exactly? ``NoPrivacy`` tells all; ``PatientDPSGD`` what the study's plan pays for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from client.audit.gate import Gate, NoGate, open_gate
from client.counts import noised_fraction, noised_scores, noised_survey
from client.evaluation import evaluate, fit_intercept, predict
from client.gradients import BatchGradients, Gradients, Take
from client.identity import release_identity
from client.secret import derive, numpy_generator, site_secret, torch_generator
from client.splits import HELD_OUT, TRAIN, TUNING
from client.store import SiteStore
from shared import config
from shared.config import EVALUATE, SURVEY, Stage
from shared.errors import SiteError
from shared.messages import Task
from shared.metrics import Scores, empty_scores
from shared.models.multimodal import MultimodalModel
from shared.privacy import PrivacyPlan
from shared.randomness import derive_seed
from shared.statistics import Survey


class Privacy(Protocol):
    """How a site answers one task."""

    @property
    def seed(self) -> int:
        """Of order, augmentation, masking and dropout."""

    def survey(self) -> Survey:
        """What the site has."""

    def check_trainable(self) -> None:
        """Raise ``SiteError`` when the site cannot fine-tune, and may say so."""

    def intercept(self, model: MultimodalModel, device: torch.device) -> float:
        """The site's own shift of the logits."""

    def tuning(self, model: MultimodalModel, device: torch.device) -> Scores:
        """Scores of the weights of a round as they came."""

    def gate(self, model: MultimodalModel, device: torch.device) -> Gate:
        """What an update passes before it leaves, given the weights with which the round begins."""

    def scores(self, model: MultimodalModel, split: str, device: torch.device) -> Scores:
        """Scores of the weights to evaluate."""

    def gradients(self, take: Take, subjects: NDArray[np.int64], stage: Stage, device: torch.device) -> Gradients:
        """What makes the steps of a round."""


class NoPrivacy:
    """Exact counts, scores and gradients."""

    def __init__(self, store: SiteStore, task: Task) -> None:
        self._store, self._task = store, task
        self.seed = derive_seed(task.study.seed, task.stage, task.round, store.name)

    def survey(self) -> Survey:
        return self._store.survey()

    def check_trainable(self) -> None:
        self._store.check_trainable()

    def intercept(self, model: MultimodalModel, device: torch.device) -> float:
        return fit_intercept(model, self._store, device)

    def tuning(self, model: MultimodalModel, device: torch.device) -> Scores:
        return evaluate(model, self._store, TUNING, device)

    def gate(self, model: MultimodalModel, device: torch.device) -> Gate:
        return open_gate(model, self._store, device)

    def scores(self, model: MultimodalModel, split: str, device: torch.device) -> Scores:
        return evaluate(model, self._store, split, device)

    def gradients(self, take: Take, subjects: NDArray[np.int64], stage: Stage, device: torch.device) -> Gradients:
        return BatchGradients(take, stage, device)


class PatientDPSGD:
    """Noised counts, scores and gradients, as the plan of the study says; what it does not pay for is not told."""

    def __init__(self, folder: Path, store: SiteStore, task: Task, privacy: config.PatientDPSGD) -> None:
        self._store, self._task, self._privacy = store, task, privacy
        self._plan = PrivacyPlan.of(task.study)
        if self._plan.delta * len(store.subjects) >= 1.0:
            rule = f"must be < 1 / patients of site {store.name} ({len(store.subjects)})"
            raise SiteError("privacy.delta", rule, value=self._plan.delta, remedy="Ask for a smaller one.")
        self._folder, self._secret, self._release = folder, site_secret(folder), release_identity(folder, task)
        self.seed = int.from_bytes(self._key("order")[:8], "big") >> 1

    def _key(self, purpose: str) -> bytes:
        return derive(self._secret, self._release, purpose)

    def survey(self) -> Survey:
        return noised_survey(self._store.survey(), self._task.study, self._fraction())

    def _fraction(self) -> float:
        """Positive patients among those that train: one number, the same whenever the study needs it."""
        release = self._plan.release_of(SURVEY)
        assert release is not None  # every private study has one
        study = self._task.study
        asked = release_identity(self._folder, Task.to_survey(study))
        random = numpy_generator(derive(self._secret, asked, "noise"))
        train = self._store.rows_of_cases(TRAIN)
        labels = self._store.labels[train].astype(np.float64)
        return noised_fraction(labels, self._store.case_subjects[train], release.noise_multiplier, random)

    def check_trainable(self) -> None:
        """How many cases train is no secret; of which classes they are is one."""
        self._store.check_split(TRAIN)

    def intercept(self, model: MultimodalModel, device: torch.device) -> float:
        """From the noised prevalences: a fitted one would let each patient move the gradients of all others."""
        assert self._task.statistics is not None
        return _logit(self._fraction()) - _logit(self._task.statistics.prevalence)

    def tuning(self, model: MultimodalModel, device: torch.device) -> Scores:
        return empty_scores()

    def gate(self, model: MultimodalModel, device: torch.device) -> Gate:
        """None: ε bounds what an attack can find, and to withhold an update would tell what no budget paid for."""
        return NoGate()

    def scores(self, model: MultimodalModel, split: str, device: torch.device) -> Scores:
        release = self._plan.release_of(EVALUATE)
        if release is None:
            self._check_exempt(EVALUATE)
            if split != HELD_OUT:
                raise SiteError("task.split", f"must be {HELD_OUT}: no other patients are exempt", value=split)
            return evaluate(model, self._store, split, device)
        assert self._task.statistics is not None
        rows = self._store.rows_of_cases(split)
        return noised_scores(
            predict(model, self._store, rows, device),
            self._store.labels[rows].astype(np.float64),
            self._store.case_subjects[rows],
            self._task.statistics.prevalence,
            release.noise_multiplier,
            numpy_generator(self._key("noise")),
        )

    def gradients(self, take: Take, subjects: NDArray[np.int64], stage: Stage, device: torch.device) -> Gradients:
        release = self._plan.release_of(self._task.stage)
        if release is None:
            self._check_exempt(self._task.stage)
            return BatchGradients(take, stage, device)
        from client.dpsgd import PatientGradients  # and with it Opacus, which takes seconds

        random, noise = numpy_generator(self._key("sample")), torch_generator(self._key("noise"), device)
        return PatientGradients(take, subjects, stage, self._privacy, release, random, noise)

    def _check_exempt(self, stage: str) -> None:
        """What the plan has no noise for leaves where the study says so, and not where it has no such stage."""
        if stage not in self._plan.exempt:
            raise SiteError("task.stage", "must be one that the study has", value=stage)


def privacy_of(folder: Path, store: SiteStore, task: Task) -> Privacy:
    """How a site answers a task of a study; raises ``SiteError`` or ``KeyFileError`` where it must not."""
    privacy = task.study.privacy
    if isinstance(privacy, config.PatientDPSGD):
        return PatientDPSGD(folder, store, task, privacy)
    return NoPrivacy(store, task)


def _logit(fraction: float) -> float:
    return math.log(fraction / (1.0 - fraction))
