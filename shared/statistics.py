"""What does a federation know of its data before training? Sums that merge, and the statistics made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from shared.config import CLINICAL, Study
from shared.knobs import knob


def numeric_names(study: Study) -> tuple[str, ...]:
    """The clinical inputs that have a value, in the order of the model's inputs; none without the clinical branch."""
    if CLINICAL not in study.modalities:
        return ()
    return (("age_years",) if study.features.age else ()) + tuple(f.name for f in study.features.numeric)


@dataclass(frozen=True)
class Survey:
    """Sums and counts of one site, or of several merged; nothing of a single patient.

    The three lists run over ``numeric_names(study)`` and count training patients' cases only.
    """

    patients: int = knob(0, "patients with images or records", ge=0)
    oct_scans: int = knob(0, "usable OCT B-scans", ge=0)
    ir_scans: int = knob(0, "usable infrared scans", ge=0)
    quarantined: int = knob(0, "scans that could not be read", ge=0)
    labelled: int = knob(0, "labelled cases", ge=0)
    positive: int = knob(0, "labelled cases with the outcome", ge=0)
    train_cases: int = knob(0, "labelled cases that train", ge=0)
    train_positive: int = knob(0, "labelled cases that train and have the outcome", ge=0)
    clinical_cases: int = knob(0, "labelled cases with any clinical record", ge=0)
    counts: tuple[int, ...] = knob((), "values present of each numeric feature", ge=0)
    sums: tuple[float, ...] = knob((), "sum of each numeric feature")
    squares: tuple[float, ...] = knob((), "sum of squares of each numeric feature", ge=0)

    def modalities(self) -> tuple[str, ...]:
        """The branches for which this site has inputs."""
        has = {"oct": self.oct_scans, "ir": self.ir_scans, "clinical": self.clinical_cases}
        return tuple(name for name, count in has.items() if count)


def merge(surveys: list[Survey]) -> Survey:
    """The survey of all patients together: field by field sums (associative up to rounding, commutative)."""
    return reduce(_add, surveys)


def _add(a: Survey, b: Survey) -> Survey:
    total: dict[str, Any] = {}
    for name in Survey.__dataclass_fields__:
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, tuple):
            total[name] = tuple(x + y for x, y in zip(left, right, strict=True))
        else:
            total[name] = left + right
    return replace(a, **total)


@dataclass(frozen=True)
class Statistics:
    """What the model needs of the survey: sent with every task, kept in every checkpoint."""

    mean: tuple[float, ...] = knob((), "mean of each numeric feature")
    deviation: tuple[float, ...] = knob((), "standard deviation of each numeric feature", gt=0.0)
    prevalence: float = knob(0.5, "fraction of the training cases with the outcome", gt=0.0, lt=1.0)

    @staticmethod
    def of(survey: Survey) -> Statistics:
        """Statistics of a merged survey; a feature that nobody has, or that never varies, is left as it is."""
        means, deviations = [], []
        for count, total, squares in zip(survey.counts, survey.sums, survey.squares, strict=True):
            mean = total / count if count else 0.0
            variance = squares / count - mean * mean if count else 0.0
            means.append(mean)
            deviations.append(math.sqrt(variance) if variance > 1e-9 * max(1.0, mean * mean) else 1.0)
        # Half a case of each class keeps the prevalence off 0 and 1 where a class is absent.
        prevalence = (survey.train_positive + 0.5) / (survey.train_cases + 1.0)
        return Statistics(tuple(means), tuple(deviations), prevalence)

    @staticmethod
    def neutral(study: Study) -> Statistics:
        """Statistics that change nothing, for a model built before any survey."""
        width = len(numeric_names(study))
        return Statistics((0.0,) * width, (1.0,) * width)
