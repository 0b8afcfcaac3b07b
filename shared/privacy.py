"""What does a study let out of a site, and what does it cost a patient? One frozen plan, made before the study runs.

Clip, sampling rate, noise, steps and accountant are tied together in the plan: none can be changed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from shared.accounting import RDP, Release, epsilon
from shared.config import EVALUATE, FINETUNE, PRETRAIN, SURVEY, PatientDPSGD, Stage, Study
from shared.errors import ConfigError

_LEARNED = "the model\u2019s weights after noised steps, the number of training examples; no loss, no scores"
# What a message of a private stage holds, in words.
NOISED = {
    SURVEY: "numbers of patients, scans, labelled and training cases, exact and treated as public; "
    "the number of training patients with the outcome, noised",
    PRETRAIN: _LEARNED,
    FINETUNE: _LEARNED,
    EVALUATE: "of held-out patients, numbers in cells of the predicted risk, by outcome, noised",
}
_TOLERANCE = 1.01  # of the target: how far below it a plan may stay
_TRIES = 20


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


def steps_of_round(stage: Stage, sampling_rate: float) -> int:
    """Steps that a site trains in a round, whatever its size."""
    return max(round(stage.epochs / sampling_rate), 1)


@lru_cache(maxsize=64)
def _plan(study: Study) -> PrivacyPlan:
    privacy = study.privacy
    if not isinstance(privacy, PatientDPSGD):
        return PrivacyPlan()
    exempt = tuple(stage for stage in privacy.exempt if stage in study.stages)
    target, delta, rate = privacy.target_epsilon, privacy.delta, privacy.sampling_rate
    # Gaussian mechanisms compose by the inverse squares of their noise, so these can be shared out.
    whole = calibrate(lambda noise: [Release(noise, 1.0)], target, delta)
    counted = [(SURVEY, Release(whole / math.sqrt(privacy.survey_share), 1.0), 1)]
    if study.finetune.rounds and EVALUATE not in exempt:
        counted.append((EVALUATE, Release(whole / math.sqrt(privacy.evaluation_share), 1.0), 1))

    def plan_with(noise: float) -> PrivacyPlan:
        trained = [
            (name, Release(noise, rate, steps_of_round(stage, rate)), stage.rounds)
            for name, stage in study.training.items()
            if name not in exempt
        ]
        return PrivacyPlan(target, delta, privacy.clip, rate, tuple(sorted(trained + counted)), exempt)

    plan = plan_with(calibrate(lambda noise: plan_with(noise).releases(), target, delta))
    return replace(plan, epsilon=epsilon(plan.releases(), delta))


def calibrate(history: Callable[[float], list[Release]], target: float, delta: float) -> float:
    """A noise multiplier with which a history of releases comes to an ε within 1 % of a target, and not above it.

    Raises:
        ConfigError: not even a very large one does, as the history holds more than that noise.
    """
    start = noise = _safe_noise(history, target, delta)
    goal, slope, before = target / math.sqrt(_TOLERANCE), -1.0, (0.0, 0.0)
    for _ in range(_TRIES):
        found = epsilon(history(noise), delta)
        if target / _TOLERANCE <= found <= target:
            return noise
        if before[0] not in (0.0, noise) and found > 0.0:
            slope = math.log(found / before[1]) / math.log(noise / before[0])
        before = (noise, max(found, target / 100))
        noise *= (goal / before[1]) ** (1.0 / min(max(slope, -4.0), -0.25))
    return start


def _safe_noise(history: Callable[[float], list[Release]], target: float, delta: float) -> float:
    """A little more noise than is needed, by RDP, which is a bound too and takes no time."""
    low = high = 1.0
    while epsilon(history(high), delta, RDP) > target:
        if high > 2.0**16:
            remedy = "Lower the stages' rounds or epochs, privacy.sampling_rate or the shares, or raise it."
            raise ConfigError("privacy.target_epsilon", "must be reachable", value=target, remedy=remedy)
        low, high = high, high * 2.0
    while low == high or (epsilon(history(low), delta, RDP) <= target and low > 2.0**-6):
        low, high = low / 2.0, low
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if epsilon(history(middle), delta, RDP) <= target else (middle, high)
    return high
