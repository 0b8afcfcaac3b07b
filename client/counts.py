"""How do counts of patients leave a site with noise? Each patient counts once, whatever number of cases they have."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shared.config import CLINICAL, Study
from shared.metrics import Scores, empty_scores, score
from shared.statistics import Survey

CELLS = 16  # of predicted risk; with more, the noise of all of them would drown the cases
_AGE_RANGE_YEARS = (20.0, 100.0)

Floats = NDArray[np.float64]


def patient_shares(subjects: NDArray[np.int64]) -> Floats:
    """The part of its patient that each case is: 1 over the patient's cases."""
    _, patient, count = np.unique(subjects, return_inverse=True, return_counts=True)
    shares: Floats = (1.0 / count)[patient] if len(subjects) else np.empty(0)
    return shares


def noised_fraction(labels: Floats, subjects: NDArray[np.int64], noise: float, random: np.random.Generator) -> float:
    """The fraction of the patients that are positive, in (0, 1); one patient moves the count by at most 1.

    Args:
        labels: (N,) of the cases; ``subjects`` their patients.
        noise: deviation of the noise on the count.
    """
    patients = len(np.unique(subjects))
    count = float((labels * patient_shares(subjects)).sum()) + noise * random.standard_normal()
    least = 0.5 / (patients + 1.0)  # half a patient of each class, so that its logarithm exists
    return min(max((count + 0.5) / (patients + 1.0), least), 1.0 - least)


def noised_survey(exact: Survey, study: Study, fraction: float) -> Survey:
    """A survey that tells of the patients only how many there are, and the noised fraction of positive ones.

    Values of features are stated as the study expects them before it has seen any (``usual``): nothing of them leaves.
    """
    ranges = [_AGE_RANGE_YEARS] if study.features.age else []
    ranges += [feature.usual for feature in study.features.numeric]
    cases = exact.train_cases
    known = [((low + high) / 2.0, (high - low) / 4.0) for low, high in ranges if CLINICAL in study.modalities]
    return replace(
        exact,
        quarantined=0,
        positive=round(fraction * exact.labelled),
        train_positive=round(fraction * cases),
        clinical_cases=exact.labelled if known else 0,
        counts=(cases,) * len(known),
        sums=tuple(cases * middle for middle, _ in known),
        squares=tuple(cases * (middle**2 + deviation**2) for middle, deviation in known),
    )


def noised_scores(
    logits: Floats,
    labels: Floats,
    subjects: NDArray[np.int64],
    prevalence: float,
    noise: float,
    random: np.random.Generator,
) -> Scores:
    """Scores of predictions of which only noised counts in ``CELLS`` cells of risk for each class are known.

    One patient's cases together weigh 1, so the counts move by at most 1. What follows the noise costs nothing: the
    nearest counts that are not negative and sum to the patients, and losses of cases in the middle of their cells.

    Args:
        logits, labels: (N,); ``subjects`` their patients.
        prevalence: of the federation, where the cells are finest.
    """
    if not len(logits):
        return empty_scores()
    logits = np.nan_to_num(logits, nan=0.0)  # an error in the place of an answer would tell who has none
    centre = math.log(prevalence / (1.0 - prevalence))
    cells = np.minimum((CELLS / (1.0 + np.exp(centre - np.clip(logits, -60, 60)))).astype(int), CELLS - 1)
    place = cells + CELLS * (labels > 0.5)
    counts = np.bincount(place, weights=patient_shares(subjects), minlength=2 * CELLS)
    noised = counts + noise * random.standard_normal(2 * CELLS)
    whole = _rounded(_nearest(noised, len(np.unique(subjects))))
    middle = (np.arange(CELLS) + 0.5) / CELLS
    of_cell = np.log(middle / (1.0 - middle)) + centre
    return score(np.repeat(np.tile(of_cell, 2), whole), np.repeat(np.repeat([0.0, 1.0], CELLS), whole))


def _nearest(counts: Floats, total: int) -> Floats:
    """The closest counts that are >= 0 and sum to a total (projection to a simplex, Duchi et al., ICML 2008)."""
    ordered = np.sort(counts)[::-1]
    excess = (np.cumsum(ordered) - total) / np.arange(1, len(counts) + 1)
    nearest: Floats = np.maximum(counts - excess[np.flatnonzero(ordered > excess)[-1]], 0.0)
    return nearest


def _rounded(counts: Floats) -> NDArray[np.int64]:
    """Whole counts of the same sum: largest remainders are rounded up."""
    whole = np.floor(counts).astype(np.int64)
    missing = round(float(counts.sum())) - int(whole.sum())
    whole[np.argsort(whole - counts, kind="stable")[:missing]] += 1
    return whole
