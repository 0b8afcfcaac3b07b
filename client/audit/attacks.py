"""How is a patient's membership guessed? Scores, higher for those who more likely trained the model."""

from __future__ import annotations

import numpy as np

from client.audit.patients import Flags, Floats

_OWN_DEVIATION = 64  # shadow models from which on each patient's own deviation is known well enough
_SMALLEST = 1e-3  # deviation; below, a patient's shadows all agree and a tiny difference would count without bound


def loss_threshold(confidence: Floats) -> Floats:
    """The lower the loss, the likelier a member (Yeom et al. 2018, arXiv 1709.01604): the baseline.

    Args:
        confidence: log odds of the true outcome.
    """
    return -np.logaddexp(0.0, -confidence)


def likelihood_ratio(target: Floats, shadows: Floats, inside: Flags) -> Floats:
    """LiRA with shadow models on both sides (Carlini et al. 2022, arXiv 2112.03570, algorithm 1).

    Args:
        target: (P,) confidence of the audited model in each patient.
        shadows: (S, P) that of each shadow model.
        inside: (S, P) whether the patient trained the shadow model; each did at least one and not at least one.

    Returns:
        (P,) log likelihood ratio of member to non-member, each side Gaussian.
    """
    with_them, without = _gaussian(shadows, inside), _gaussian(shadows, ~inside)
    return _log_density(target, *with_them) - _log_density(target, *without)


def above_outsiders(target: Floats, shadows: Floats, inside: Flags) -> Floats:
    """LiRA with only the shadow models that the patient did not train, offline in the paper: deviations above them.

    Args, returns: as ``likelihood_ratio``.
    """
    mean, deviation = _gaussian(shadows, ~inside)
    return (target - mean) / deviation


def _gaussian(shadows: Floats, chosen: Flags) -> tuple[Floats, Floats]:
    """(P,) means and deviations of the chosen shadow models; few of them share one deviation."""
    counts = chosen.sum(axis=0)
    mean = np.where(chosen, shadows, 0.0).sum(axis=0) / counts
    squares = np.where(chosen, np.square(shadows - mean), 0.0)
    if len(shadows) >= _OWN_DEVIATION:
        variance = squares.sum(axis=0) / (counts - 1)
    else:
        variance = np.full_like(mean, squares.sum() / max((counts - 1).sum(), 1))
    return mean, np.maximum(np.sqrt(variance), _SMALLEST)


def _log_density(values: Floats, mean: Floats, deviation: Floats) -> Floats:
    return -0.5 * np.square((values - mean) / deviation) - np.log(deviation)
