"""What would the model be, had it been trained by other patients? Shadow models, by the one loop, on random halves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from client.audit.patients import Flags, Floats, Patients
from client.evaluation import fit_intercept
from client.gradients import BatchGradients, Gradients
from client.optimizers import build_optimizer
from client.splits import HELD_OUT, TRAIN
from client.store import SiteStore
from client.training import train
from shared.config import FINETUNE, PatientDPSGD, Study
from shared.models.multimodal import MultimodalModel
from shared.objectives.registry import build_objective
from shared.objectives.supervised import SupervisedObjective
from shared.privacy import PrivacyPlan
from shared.randomness import derive_seed
from shared.statistics import Statistics
from shared.weights import Weights, write_weights


@dataclass(frozen=True)
class Start:
    """Where fine-tuning begins: the study, its statistics, and the weights of its objective."""

    study: Study
    statistics: Statistics
    weights: Weights


def train_shadows(
    patients: Patients, start: Start, count: int, seed: int, device: torch.device, done: Callable[[int], None]
) -> tuple[Floats, Flags]:
    """Train shadow models in pairs, each on the half of the patients that the other one does not get.

    Args:
        count: of models, even: every patient then trained just half of them.
        seed: of the halves and of training.
        done: is told how many are trained.

    Returns:
        (count, P) mean confidence in each patient, and (count, P) whether the patient trained the model.
    """
    confidences, inside = [], []
    for pair in range(count // 2):
        half = draw_half(patients.positive, np.random.default_rng(derive_seed(seed, pair)))
        for side, chosen in enumerate((half, ~half)):
            model = _shadow(patients, start, chosen, derive_seed(seed, pair, side), device)
            confidences.append(patients.mean(patients.confidence(model, device)))
            inside.append(chosen)
            done(len(inside))
    return np.stack(confidences), np.stack(inside)


def draw_half(positive: Flags, random: np.random.Generator) -> Flags:
    """A random half of the patients, with half of those with the outcome: both halves can train."""
    order = random.permutation(len(positive))
    order = order[np.argsort(positive[order], kind="stable")]
    chosen = np.zeros(len(positive), dtype=bool)
    chosen[order[random.integers(2) :: 2]] = True
    return chosen


def _shadow(patients: Patients, start: Start, chosen: Flags, seed: int, device: torch.device) -> MultimodalModel:
    study, store = start.study, _store_where(patients, chosen)
    objective = build_objective(study, FINETUNE, start.statistics).to(device)
    assert isinstance(objective, SupervisedObjective)
    write_weights(objective, start.weights)
    rows, stage = store.rows_of_cases(TRAIN), study.finetune
    for number in range(1, stage.rounds + 1):
        if stage.site_intercept:
            objective.model.intercept = fit_intercept(objective.model, store, device)
        optimizer = build_optimizer(objective, study, stage)
        drawn = derive_seed(seed, number)
        train(objective, rows, _gradients(study, store, drawn, device), stage, optimizer, drawn, number, device)
    objective.model.intercept = 0.0  # which never leaves a site, so whoever attacks does not have it
    return objective.model


def _gradients(study: Study, store: SiteStore, seed: int, device: torch.device) -> Gradients:
    """As the model's own were made, with privacy or without; by a plain seed, since nothing of a shadow leaves."""
    release = PrivacyPlan.of(study).release_of(FINETUNE)
    if release is None or not isinstance(study.privacy, PatientDPSGD):
        return BatchGradients(store.take_cases, study.finetune, device)
    from client.dpsgd import PatientGradients

    random, noise = np.random.default_rng(seed), torch.Generator(device).manual_seed(seed)
    subjects = store.case_subjects
    return PatientGradients(store.take_cases, subjects, study.finetune, study.privacy, release, random, noise)


def _store_where(patients: Patients, chosen: Flags) -> SiteStore:
    """The site, had these patients trained and the others been held out."""
    splits = np.full_like(patients.store.case_splits, "")
    splits[patients.rows] = np.where(chosen[patients.places], TRAIN, HELD_OUT)
    return replace(patients.store, case_splits=splits)
