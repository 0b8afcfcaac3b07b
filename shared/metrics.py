"""How good are predicted risks? Counts that sites add up, and what follows from them.

A site sends how many of its cases of each class fall in each of ``BINS`` bins of the logit, and three sums; no case
appears by itself. Every figure here is made of such counts, so it is the same whether sites are merged before or after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from shared.errors import MessageError

BINS = 2000
_LARGEST_LOGIT = 10.0  # beyond, a risk differs from 0 or 1 by less than 5e-5

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Predicted logits of some cases, as counts.

    Attributes:
        positives, negatives: (BINS,) cases by logit, lowest first.
        log_loss: sum of the cases' negative log likelihoods.
        squares: sum of the squared differences of risk and outcome (Brier).
    """

    positives: Counts
    negatives: Counts
    log_loss: float
    squares: float

    @property
    def cases(self) -> int:
        return int(self.positives.sum() + self.negatives.sum())

    def __add__(self, other: Scores) -> Scores:
        return Scores(
            self.positives + other.positives,
            self.negatives + other.negatives,
            self.log_loss + other.log_loss,
            self.squares + other.squares,
        )

    def check(self, name: str) -> None:
        """Raise ``MessageError`` when these cannot be counts and sums of cases."""
        for part, counts in (("positives", self.positives), ("negatives", self.negatives)):
            if counts.shape != (BINS,) or (counts < 0).any():
                raise MessageError(f"{name}.{part}", f"must be {BINS} counts", value=counts.shape)
        for part, total in (("log_loss", self.log_loss), ("squares", self.squares)):
            if not (math.isfinite(total) and total >= 0.0):
                raise MessageError(f"{name}.{part}", "must be finite and >= 0", value=total)


def score(logits: Floats, labels: Floats) -> Scores:
    """The counts of some predictions.

    Args:
        logits: (N,), finite.
        labels: (N,), 0 or 1.
    """
    width = 2 * _LARGEST_LOGIT / BINS
    within = np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)  # before the cast, which would wrap large ones around
    bins = np.minimum(((within + _LARGEST_LOGIT) / width).astype(np.int64), BINS - 1)
    positive = labels > 0.5
    return Scores(
        positives=np.bincount(bins[positive], minlength=BINS).astype(np.int64),
        negatives=np.bincount(bins[~positive], minlength=BINS).astype(np.int64),
        log_loss=float(np.logaddexp(0.0, np.where(positive, -logits, logits)).sum()),
        squares=float(np.square(_sigmoid(logits) - labels).sum()),
    )


def empty_scores() -> Scores:
    """The counts of no case, neutral under addition."""
    return Scores(np.zeros(BINS, np.int64), np.zeros(BINS, np.int64), 0.0, 0.0)


def auroc(scores: Scores) -> float | None:
    """Chance that a positive case ranks above a negative one, ties half; None when a class is absent."""
    positives, negatives = float(scores.positives.sum()), float(scores.negatives.sum())
    if not positives or not negatives:
        return None
    below = np.cumsum(scores.negatives) - scores.negatives
    return float((scores.positives * (below + 0.5 * scores.negatives)).sum() / (positives * negatives))


def auroc_variance(scores: Scores) -> float | None:
    """Variance of ``auroc`` by DeLong's placements (Biometrics 1988, 44:837); None with one case of a class."""
    area = auroc(scores)
    positives, negatives = int(scores.positives.sum()), int(scores.negatives.sum())
    if area is None or positives < 2 or negatives < 2:
        return None
    below = (np.cumsum(scores.negatives) - 0.5 * scores.negatives) / negatives
    above = 1.0 - (np.cumsum(scores.positives) - 0.5 * scores.positives) / positives
    of_positives = (scores.positives * np.square(below - area)).sum() / (positives - 1)
    of_negatives = (scores.negatives * np.square(above - area)).sum() / (negatives - 1)
    return float(of_positives / positives + of_negatives / negatives)


def mean_auroc(sites: list[Scores], level: float = 0.95) -> tuple[float | None, tuple[float, float] | None]:
    """Mean over sites of each site's AUROC, and its interval.

    Ranking is asked of a model within a hospital: cases of two hospitals are never compared, so differing prevalence
    neither helps nor hurts. Sites with one class only are left out.
    """
    areas = [area for area in map(auroc, sites) if area is not None]
    if not areas:
        return None, None
    mean = sum(areas) / len(areas)
    variances = [v for v in map(auroc_variance, sites) if v is not None]
    if len(variances) < len(areas):
        return mean, None
    half = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt(sum(variances)) / len(areas)
    return mean, (max(mean - half, 0.0), min(mean + half, 1.0))


def average_precision(scores: Scores) -> float | None:
    """Area under precision over recall, as a sum of steps; None without positives."""
    positives = scores.positives[::-1]
    if not positives.sum():
        return None
    found, asked = np.cumsum(positives), np.cumsum(positives + scores.negatives[::-1])
    precision = found / np.maximum(asked, 1)
    return float((precision * positives).sum() / positives.sum())


def roc(scores: Scores, points: int = 101) -> list[tuple[float, float]]:
    """False and true positive rates from (0, 0) to (1, 1), at most about ``points`` of them."""
    negatives, positives = scores.negatives[::-1], scores.positives[::-1]
    if not positives.sum() or not negatives.sum():
        return []
    false = np.concatenate([[0.0], np.cumsum(negatives) / negatives.sum()])
    true = np.concatenate([[0.0], np.cumsum(positives) / positives.sum()])
    changes = np.flatnonzero(np.diff(false, prepend=-1.0) + np.diff(true, prepend=-1.0))
    chosen = changes[np.unique(np.linspace(0, len(changes) - 1, points).astype(int))]
    return [(round(float(false[i]), 5), round(float(true[i]), 5)) for i in chosen]


def calibration_bins(scores: Scores, bins: int = 10) -> list[dict[str, float]]:
    """Mean predicted risk against observed fraction, in bins of about equally many cases."""
    counts = scores.positives + scores.negatives
    if not counts.sum():
        return []
    middle = (np.cumsum(counts) - 0.5 * counts) / counts.sum()
    place = np.minimum((middle * bins).astype(int), bins - 1)
    result = []
    for index in range(bins):
        inside = place == index
        cases = int(counts[inside].sum())
        if cases:
            predicted = float((counts * _centre_risks())[inside].sum() / cases)
            observed = float(scores.positives[inside].sum() / cases)
            result.append({"predicted": round(predicted, 5), "observed": round(observed, 5), "cases": cases})
    return result


def recalibration(scores: Scores) -> tuple[float, float] | None:
    """Slope and intercept of outcome on logit (Cox 1958); (1, 0) is perfect. None when it cannot be fitted."""
    if not scores.positives.sum() or not scores.negatives.sum():
        return None
    logits, counts = _centre_logits(), (scores.positives + scores.negatives).astype(np.float64)
    design = np.stack([logits, np.ones_like(logits)])
    # From the line of no information, whence Newton's steps also reach a line that falls.
    slope_intercept = np.array([0.0, math.log(scores.positives.sum() / scores.negatives.sum())])
    for _ in range(50):
        risk = _sigmoid(slope_intercept @ design)
        gradient = design @ (scores.positives - counts * risk)
        hessian = (design * (counts * risk * (1 - risk) + 1e-12)) @ design.T
        try:
            step = np.linalg.solve(hessian + 1e-9 * np.eye(2), gradient)
        except np.linalg.LinAlgError:
            return None
        slope_intercept = slope_intercept + step
        if not np.isfinite(slope_intercept).all() or abs(slope_intercept).max() > 1e3:
            return None  # the classes are separated, and no finite line fits
        if abs(step).max() < 1e-9:
            break
    return float(slope_intercept[0]), float(slope_intercept[1])


def _centre_logits() -> Floats:
    width = 2 * _LARGEST_LOGIT / BINS
    return np.asarray((np.arange(BINS) + 0.5) * width - _LARGEST_LOGIT, dtype=np.float64)


def _centre_risks() -> Floats:
    return _sigmoid(_centre_logits())


def _sigmoid(logits: Floats) -> Floats:
    risks: Floats = 1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0)))
    return risks
