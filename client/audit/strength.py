"""How well does an attack tell members from others? Rates and areas, never without their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from client.audit.patients import Floats
from shared.metrics import Scores, auroc, auroc_variance, roc

FALSE_RATES = (0.001, 0.01, 0.1)
JOINT_LEVEL = 0.95  # of the intervals of all attacks together


@dataclass(frozen=True)
class Rate:
    """Members found where at most ``false_alarms`` others are taken for members.

    Attributes:
        false_rate: false alarms over others.
        found: share of the members; ``low`` and ``high`` its interval (Clopper and Pearson 1934).
        chance: of finding so many by guessing.
    """

    false_rate: float
    false_alarms: int
    found: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Strength:
    """What an attack reached.

    Attributes:
        area: chance that a member scores above another patient; ``interval`` by DeLong's variance, None for too few.
        rates: at each of ``FALSE_RATES``; None where there are too few others for a single false alarm.
        beats_guessing: whether the area or a rate is, at the level of the intervals, more than chance.
        curve: (false alarms, members found), rates from (0, 0) to (1, 1).
    """

    attack: str
    area: float
    interval: tuple[float, float] | None
    rates: tuple[Rate | None, ...]
    beats_guessing: bool
    curve: tuple[tuple[float, float], ...]


def strength(attack: str, members: Floats, others: Floats, level: float) -> Strength:
    """Measure the scores of an attack.

    Args:
        members, others: scores, higher for likelier members; at least one of each.
        level: of the intervals.
    """
    ranked = _ranked(members, others)
    area = auroc(ranked)
    assert area is not None
    rates = tuple(found_at(members, others, rate, level) for rate in FALSE_RATES)
    interval = _area_interval(ranked, level)
    beats_guessing = interval is not None and interval[0] > 0.5
    beats_guessing |= any(rate is not None and rate.chance < (1.0 - level) / len(rates) for rate in rates)
    return Strength(attack, area, interval, rates, beats_guessing, tuple(roc(ranked, 201)))


def level_of_each(attacks: int) -> float:
    """Level of the intervals of each attack with which they hold for all at ``JOINT_LEVEL`` (Bonferroni)."""
    return 1.0 - (1.0 - JOINT_LEVEL) / attacks


def found_at(members: Floats, others: Floats, false_rate: float, level: float) -> Rate | None:
    """Members found at the threshold that gives at most ``false_rate`` false alarms; None where that allows none."""
    alarms = math.floor(false_rate * len(others) + 1e-9)
    return found_with(members, others, alarms, level) if alarms else None


def found_with(members: Floats, others: Floats, alarms: int, level: float) -> Rate:
    """Members who score above all others but ``alarms``."""
    threshold = np.sort(others)[::-1][alarms] if alarms < len(others) else -np.inf
    hits = int((members > threshold).sum())
    low, high = clopper_pearson(hits, len(members), level)
    chance = _chance(hits, alarms, len(members), len(others))
    return Rate(alarms / len(others), alarms, hits / len(members), low, high, chance)


def clopper_pearson(hits: int, trials: int, level: float) -> tuple[float, float]:
    """The interval of a proportion that holds at least at ``level`` (Biometrika 1934, 26:404)."""
    from scipy.stats import beta  # a second to import, which a site without an audit is spared

    tail = (1.0 - level) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1.0 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def _chance(hits: int, alarms: int, members: int, others: int) -> float:
    """Of finding so many members or more before one alarm more, in a random order of all: exact.

    The threshold itself hangs on few alarms, which the interval of the share found knows nothing of.
    """
    from scipy.stats import hypergeom

    return float(hypergeom.cdf(alarms, members + others, others, hits + alarms))


def most_found(epsilon: float, delta: float, false_rate: float) -> float:
    """The largest share of members that any attack on an (ε, δ)-private model finds (arXiv 1311.0776, theorem 2.1)."""
    by_likeness = math.exp(min(epsilon, 700.0)) * false_rate + delta
    by_rest = 1.0 - math.exp(-epsilon) * (1.0 - delta - false_rate)
    return min(by_likeness, by_rest, 1.0)


def strongest(found: Sequence[Strength], place: int) -> Rate | None:
    """Of some attacks, the rate with the highest lower bound at one of ``FALSE_RATES``."""
    rates = [rate for each in found if (rate := each.rates[place]) is not None]
    return max(rates, key=lambda rate: rate.low, default=None)


def _ranked(members: Floats, others: Floats) -> Scores:
    """The scores as counts by rank, of which the areas under curves are made."""
    values, places = np.unique(np.concatenate([members, others]), return_inverse=True)
    counted = [np.bincount(part, minlength=len(values)) for part in (places[: len(members)], places[len(members) :])]
    return Scores(counted[0], counted[1], 0.0, 0.0)


def _area_interval(ranked: Scores, level: float) -> tuple[float, float] | None:
    area, variance = auroc(ranked), auroc_variance(ranked)
    if area is None or variance is None:
        return None
    half = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt(variance)
    return max(area - half, 0.0), min(area + half, 1.0)
