"""What does a study let out of a site, and what does it cost a patient? One frozen plan, made before the study runs.

Clip, sampling rate, noise, steps and accountant are tied together in the plan: none can be changed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from shared.accounting import PRV, RDP, Release, epsilon
from shared.config import PatientDPSGD, Stage, Study
from shared.errors import ConfigError

SURVEY, PRETRAIN, FINETUNE, EVALUATE = "survey", "pretrain", "finetune", "evaluate"
_CLOSE, _LOOKS = 0.99, 8  # how much of an ε is to be used, and how often it is looked for


@dataclass(frozen=True)
class PrivacyPlan:
    """What the messages of a study cost a patient of a site; adjacency is to add or remove one patient.

    Attributes:
        epsilon: of all messages of the study together; infinite without privacy.
        delta: of the same.
        clip: largest norm of a patient's part in the gradient of a step.
        sampling_rate: chance of a patient to be in a step.
        costs: stage, what one of its messages releases, and how many of them the study needs.
        exempt: stages that are knowingly not private: whoever is in them has no guarantee from this study.
    """

    epsilon: float = math.inf
    delta: float = 1.0
    clip: float = math.inf
    sampling_rate: float = 1.0
    costs: tuple[tuple[str, Release, int], ...] = ()
    exempt: tuple[str, ...] = ()

    @staticmethod
    def of(study: Study) -> PrivacyPlan:
        """The plan of a study, the same wherever it is made.

        Raises:
            ConfigError: no noise that could be computed with meets ``privacy.target_epsilon``.
        """
        return _plan(study)

    def release_of(self, stage: str) -> Release | None:
        """What one message of a stage (survey, pretrain, finetune, evaluate) releases; None: nothing, or unnoised."""
        return next((release for name, release, _ in self.costs if name == stage), None)

    def releases(self) -> list[Release]:
        """Everything that one site releases in the whole study."""
        return [replace(release, steps=release.steps * messages) for _, release, messages in self.costs]

    @property
    def noise_multiplier(self) -> float:
        """Deviation of a training step's noise over ``clip``."""
        return next((r.noise_multiplier for name, r, _ in self.costs if name in (PRETRAIN, FINETUNE)), 0.0)

    @property
    def covers_pretraining(self) -> bool:
        """Does ε hold for the patients of pretraining too?"""
        return math.isfinite(self.epsilon) and PRETRAIN not in self.exempt

    def statement(self) -> str:
        """The guarantee in one sentence, with what it does not cover."""
        if math.isinf(self.epsilon):
            return "No differential privacy."
        limits = {
            PRETRAIN: " Pretraining was not private: its patients have no guarantee.",
            EVALUATE: " Scores of held-out patients leave as they are: those have no guarantee.",
        }
        return (
            f"ε = {self.epsilon:.2f} at δ = {self.delta:g} for each patient of a site "
            "(all visits, both eyes, record and label; add or remove one)."
        ) + "".join(limits[stage] for stage in self.exempt)


def steps_of_round(stage: Stage, sampling_rate: float) -> int:
    """Steps that a site trains in a round, whatever its size."""
    return max(round(stage.epochs / sampling_rate), 1)


@lru_cache(maxsize=64)
def _plan(study: Study) -> PrivacyPlan:
    privacy = study.privacy
    if not isinstance(privacy, PatientDPSGD):
        return PrivacyPlan()
    exempt = tuple(stage for stage in privacy.exempt if stage != PRETRAIN or study.pretrain.rounds)
    target, delta, rate = privacy.target_epsilon, privacy.delta, privacy.sampling_rate
    # Gaussian mechanisms compose by the inverse squares of their noise, so these can be shared out.
    whole = calibrate(lambda noise: [Release(noise, 1.0)], target, delta)
    counted = []
    if study.finetune.rounds:
        counted.append((SURVEY, Release(whole / math.sqrt(privacy.survey_share), 1.0), 1))
        if EVALUATE not in exempt:
            counted.append((EVALUATE, Release(whole / math.sqrt(privacy.evaluation_share), 1.0), 1))

    def plan_with(noise: float) -> PrivacyPlan:
        stages = ((PRETRAIN, study.pretrain), (FINETUNE, study.finetune))
        trained = [
            (name, Release(noise, rate, steps_of_round(stage, rate)), stage.rounds)
            for name, stage in stages
            if stage.rounds and name not in exempt
        ]
        return PrivacyPlan(target, delta, privacy.clip, rate, tuple(sorted(trained + counted)), exempt)

    plan = plan_with(calibrate(lambda noise: plan_with(noise).releases(), target, delta))
    return replace(plan, epsilon=epsilon(plan.releases(), delta))


def calibrate(history: Callable[[float], list[Release]], target: float, delta: float) -> float:
    """About the smallest noise multiplier with which a history of releases stays within an ε, from the safe side.

    A bound that is quick to compute brackets it; the accountant that is stated needs seconds, and few looks.

    Raises:
        ConfigError: not even a very large one does, as the history holds more than that noise.
    """
    low, high = 0.0, _enough(history, target, delta)
    spent = epsilon(history(high), delta)
    for _ in range(_LOOKS):
        if spent >= _CLOSE * target:
            break
        guess = max(high * spent / target, math.sqrt(low * high))
        found = epsilon(history(guess), delta)
        if found <= target:
            high, spent = guess, found
        else:
            low = guess
    return high


def _enough(history: Callable[[float], list[Release]], target: float, delta: float) -> float:
    """A noise multiplier that is enough by Rényi's bound, or, where that cannot go so low, by the stated accountant."""
    accountant = RDP if target >= 1.0 else PRV
    noise = 1.0
    while epsilon(history(noise), delta, accountant) > target:
        noise *= 1.5
        if noise > 2.0**16:
            remedy = "Lower the stages' rounds or epochs, privacy.sampling_rate or the shares, or raise it."
            raise ConfigError("privacy.target_epsilon", "must be reachable", value=target, remedy=remedy)
    while noise > 2.0**-5 and epsilon(history(noise / 1.05), delta, accountant) <= target:
        noise /= 1.05
    return noise
