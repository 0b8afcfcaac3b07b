"""What does a site add to a sum? Its survey, its scores, or what it learned in a round: as numbers in fixed order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.config import EVALUATE, SURVEY
from shared.errors import MessageError
from shared.metrics import BINS, Scores
from shared.secure_aggregation.quantisation import Counts, Reals
from shared.statistics import Survey

_WHOLE = tuple(name for name, value in vars(Survey()).items() if isinstance(value, int))


@dataclass(frozen=True)
class Numbers:
    """Of one site, or summed over sites.

    Attributes:
        counts: (C,) whole numbers >= 0.
        reals: (R,).
    """

    counts: Counts
    reals: Reals

    @staticmethod
    def of(counts: Any, reals: Any) -> Numbers:
        """Of sequences."""
        return Numbers(np.asarray(counts, np.int64), np.asarray(reals, np.float64))


def of_survey(survey: Survey) -> Numbers:
    """A survey as numbers."""
    whole = [getattr(survey, name) for name in _WHOLE]
    return Numbers.of([*whole, *survey.counts], [*survey.sums, *survey.squares])


def to_survey(numbers: Numbers) -> Survey:
    """The inverse of ``of_survey``; raises ``MessageError`` for what is no survey."""
    check_counts(numbers)
    features = len(numbers.reals) // 2
    whole = {name: int(count) for name, count in zip(_WHOLE, numbers.counts, strict=False)}
    counts = tuple(map(int, numbers.counts[len(_WHOLE) :]))
    reals = tuple(map(float, numbers.reals))
    return Survey(**whole, counts=counts, sums=reals[:features], squares=reals[features:])


def of_scores(scores: Scores) -> Numbers:
    """Scores as numbers."""
    return Numbers.of(np.concatenate([scores.positives, scores.negatives]), [scores.log_loss, scores.squares])


def to_scores(numbers: Numbers) -> Scores:
    """The inverse of ``of_scores``; raises ``MessageError`` for what are no scores."""
    scores = Scores(numbers.counts[:BINS], numbers.counts[BINS:], *map(float, numbers.reals))
    scores.check("sum")
    return scores


def of_training(examples: int, loss: float, tuning: Scores) -> Numbers:
    """What an update says besides its weights, so that sums over sites give means over examples."""
    scores = of_scores(tuning)
    return Numbers.of([examples, *scores.counts], [loss * examples, *scores.reals])


def to_training(numbers: Numbers) -> tuple[int, float, Scores]:
    """Examples, mean loss and tuning scores; raises ``MessageError`` for what cannot be these."""
    check_counts(numbers)
    examples = int(numbers.counts[0])
    if not examples:
        raise MessageError("sum of the examples", "must be > 0", value=examples)
    return examples, float(numbers.reals[0]) / examples, to_scores(Numbers(numbers.counts[1:], numbers.reals[1:]))


def check_counts(numbers: Numbers) -> None:
    """Raise ``MessageError`` unless all counts are >= 0: a wrong mask would show here at once."""
    if (numbers.counts < 0).any():
        raise MessageError("counts of the sum", "must be >= 0")


def lengths(stage: str, features: int) -> tuple[int, int]:
    """How many counts and reals the sum of a stage has.

    Args:
        features: numeric features of the study's survey.
    """
    if stage == SURVEY:
        return len(_WHOLE) + features, 2 * features
    extra = 0 if stage == EVALUATE else 1
    return 2 * BINS + extra, 2 + extra
