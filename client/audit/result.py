"""What did an audit of a model find? Attacks of this site on its own patients, measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from client.audit.attacks import above_outsiders, likelihood_ratio, loss_threshold
from client.audit.demonstration import Demonstration, demonstrate
from client.audit.patients import Floats, Patients
from client.audit.shadows import Start, train_shadows
from client.audit.strength import FALSE_RATES, Strength, level_of_each, most_found, strength, strongest
from client.store import open_store
from shared.config import FINETUNE, Study
from shared.errors import FedretinaError
from shared.knobs import digest
from shared.models.saved import SavedModel, read_model
from shared.objectives.registry import build_objective
from shared.objectives.supervised import SupervisedObjective
from shared.privacy import PrivacyPlan
from shared.randomness import derive_seed
from shared.site_folder import SiteFolder
from shared.weights import carry_encoders, read_weights, write_weights

LIRA, OFFLINE, YEOM = "likelihood ratio", "likelihood ratio, outsiders only", "loss threshold"
PASS, WARN, FAIL = "pass", "warn", "fail"
GATE_RATE = 0.01
_GATE_PLACE = FALSE_RATES.index(GATE_RATE)
_REDRAWN = 4  # patients of whom a reconstruction is tried


@dataclass(frozen=True)
class Audit:
    """One model, attacked.

    Attributes:
        model_digest: SHA-256 of the model's file.
        members, others: patients who trained the model, and held-out ones.
        chosen_splits: whether the site fixed splits by hand, so that both groups may differ by more than training.
        own_encoders: whether shadow models begin with the audited model's image encoders, since others made them.
        attacks: the strongest known first.
        demonstrations: reconstructions, by size of the batch.
        limit: of ``audit_tpr_limit`` in site.yaml.
        epsilon, delta: of the study's plan for privacy; None without one.
    """

    site: str
    study: Study
    model_digest: str
    members: int
    others: int
    chosen_splits: bool
    own_encoders: bool
    shadows: int
    attacks: tuple[Strength, ...]
    demonstrations: tuple[Demonstration, ...]
    limit: float
    epsilon: float | None
    delta: float | None

    @property
    def study_digest(self) -> str:
        return digest(self.study)

    @property
    def verdict(self) -> str:
        """Fail: an attack finds more than the limit. Warn: one beats guessing, or nothing could be measured."""
        found = strongest(self.attacks, _GATE_PLACE)
        if self.breaks_its_promise or (found is not None and found.low > self.limit):
            return FAIL
        return WARN if found is None or any(each.beats_guessing for each in self.attacks) else PASS

    def permitted(self, false_rate: float) -> float:
        """The most that the study's (ε, δ) lets any attack find; everything where the study has none."""
        if self.epsilon is None or self.delta is None:
            return 1.0
        return most_found(self.epsilon, self.delta, false_rate)

    @property
    def breaks_its_promise(self) -> bool:
        """Whether surely more was found than the study's (ε, δ) permits."""
        rates = [rate for each in self.attacks for rate in each.rates if rate is not None]
        return any(rate.low > self.permitted(rate.false_rate) for rate in rates)


def audit_model(
    file: Path, site: Path, shadows: int = 16, redrawn: int = _REDRAWN, done: Callable[[int], None] = lambda count: None
) -> Audit:
    """Attack a fine-tuned model at a site whose patients trained it.

    Args:
        shadows: models to train for the likelihood ratio, an even number.
        redrawn: patients of whom a reconstruction is tried; 0: none.
        done: is told how many shadow models are trained.

    Raises:
        CheckpointError: no fine-tuned model.
        SiteError: the site has no patients who trained, or none held out.
    """
    if shadows < 4 or shadows % 2:
        raise FedretinaError("shadows", "must be an even number >= 4", value=shadows)
    saved = read_model(file)
    study, store = saved.study, open_store(site, saved.study)
    store.check_trainable()
    store.check_evaluable()
    patients, device = Patients.of(store), torch.device(store.settings.device)
    seed = derive_seed(study.seed, "audit", store.name)
    objective = _objective(saved).to(device)
    start, own_encoders = _start(saved, objective)
    confidences, inside = train_shadows(patients, start, shadows, seed, device, done)
    cases = patients.confidence(objective.model, device)
    target = patients.mean(cases)
    attacks = {
        LIRA: likelihood_ratio(target, confidences, inside),
        OFFLINE: above_outsiders(target, confidences, inside),
        YEOM: patients.mean(loss_threshold(cases)),
    }
    plan = PrivacyPlan.of(study)
    is_private = bool(plan.releases())
    return Audit(
        site=store.name,
        study=study,
        model_digest=hashlib.sha256(file.read_bytes()).hexdigest(),
        members=int(patients.trained.sum()),
        others=int((~patients.trained).sum()),
        chosen_splits=len(SiteFolder(site).subject_splits()) > 0,
        own_encoders=own_encoders,
        shadows=shadows,
        attacks=measured(attacks, patients),
        demonstrations=_demonstrations(objective, study, patients, redrawn, seed),
        limit=store.settings.audit_tpr_limit,
        epsilon=plan.epsilon if is_private else None,
        delta=plan.delta if is_private else None,
    )


def measured(attacks: dict[str, Floats], patients: Patients) -> tuple[Strength, ...]:
    """How well each attack's scores (P,) tell members from others; the intervals hold for all of them together."""
    level, trained = level_of_each(len(attacks)), patients.trained
    return tuple(strength(name, scores[trained], scores[~trained], level) for name, scores in attacks.items())


def _objective(saved: SavedModel) -> SupervisedObjective:
    objective = build_objective(saved.study, FINETUNE, saved.statistics)
    assert isinstance(objective, SupervisedObjective)
    write_weights(objective.model, saved.weights)
    return objective


def _start(saved: SavedModel, objective: SupervisedObjective) -> tuple[Start, bool]:
    """Where the study began: its seed's weights; where encoders were pretrained, those that the model has now."""
    study = saved.study
    initial = read_weights(build_objective(study, FINETUNE, saved.statistics))
    was_pretrained = bool(study.image_modalities and (study.pretrain.rounds or study.model.image.weights))
    if was_pretrained:
        initial = carry_encoders(read_weights(objective.model), initial, "model.")
    return Start(study, saved.statistics, initial), was_pretrained


def _demonstrations(
    objective: SupervisedObjective, study: Study, patients: Patients, redrawn: int, seed: int
) -> tuple[Demonstration, ...]:
    """Reconstructions of some members with scans: alone, and all of them in one batch."""
    rows = patients.rows_of(patients.trained)
    shown = np.zeros(len(rows), dtype=bool)
    for scans in patients.store.case_scans.values():
        shown |= (scans[rows] >= 0).any(axis=1)
    chosen = np.random.default_rng(seed).permutation(rows[shown])[:redrawn]
    if len(chosen) < 2:
        return ()
    attempt = partial(demonstrate, objective, study, patients)
    return (attempt([chosen[i : i + 1] for i in range(len(chosen))], seed), attempt([chosen], seed))
