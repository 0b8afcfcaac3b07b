"""Do the attacks' scores say what the papers say, and are rates and areas those of an independent computation?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from client.audit.attacks import above_outsiders, likelihood_ratio, loss_threshold
from client.audit.patients import Flags, Floats
from client.audit.shadows import draw_half
from client.audit.strength import clopper_pearson, found_at, found_with, level_of_each, most_found, strength

counts = st.integers(0, 400)
seeds = st.integers(0, 2**16)


def shadows_of(count: int, patients: int = 7, seed: int = 0) -> tuple[Floats, Floats, Flags]:
    random = np.random.default_rng(seed)
    inside = np.concatenate([[half, ~half] for half in random.random((count // 2, patients)) < 0.5])
    return random.normal(size=patients), random.normal(size=(count, patients)) + 2 * inside, inside


@pytest.mark.parametrize("count", [6, 64])
def test_the_likelihood_ratio_is_that_of_two_normal_distributions(count: int) -> None:
    """Few shadow models: one deviation for all patients; many: each patient's own."""
    target, shadows, inside = shadows_of(count)
    ratio = likelihood_ratio(target, shadows, inside)
    outside = above_outsiders(target, shadows, inside)
    sides = [[shadows[side[:, p], p] for p in range(7)] for side in (inside, ~inside)]
    pooled = [math.sqrt(sum(v.var() * len(v) for v in side) / sum(len(v) - 1 for v in side)) for side in sides]
    for p in range(7):
        own = [side[p].std(ddof=1) for side in sides]
        deviations = own if count >= 64 else pooled
        logs = [norm(side[p].mean(), d).logpdf(target[p]) for side, d in zip(sides, deviations, strict=True)]
        assert ratio[p] == pytest.approx(logs[0] - logs[1], rel=1e-9)
        assert outside[p] == pytest.approx((target[p] - sides[1][p].mean()) / deviations[1], rel=1e-9)


@given(st.lists(st.floats(-50, 50), min_size=1))
def test_the_loss_threshold_is_the_log_probability_of_the_true_outcome(confidence: list[float]) -> None:
    values = np.array(confidence)
    np.testing.assert_allclose(loss_threshold(values), np.log(1 / (1 + np.exp(-values))), rtol=1e-9, atol=1e-12)


@given(st.integers(4, 60), seeds)
def test_each_half_has_half_of_the_patients_and_half_of_each_class(patients: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    positive = random.random(patients) < 0.4
    half = draw_half(positive, random)
    for group in (half, half[positive], half[~positive]):
        assert abs(2 * int(group.sum()) - len(group)) <= 1


@given(counts, counts, st.sampled_from([0.9, 0.95, 0.99]))
def test_clopper_pearson_is_the_exact_interval(hits: int, rest: int, level: float) -> None:
    if hits + rest:
        exact = binomtest(hits, hits + rest).proportion_ci(level, "exact")
        assert clopper_pearson(hits, hits + rest, level) == pytest.approx((exact.low, exact.high), abs=1e-12)


@given(st.integers(1, 60), st.integers(1, 60), seeds, st.booleans())
def test_rates_and_areas_are_those_of_their_definitions(members: int, others: int, seed: int, ties: bool) -> None:
    random = np.random.default_rng(seed)
    a, b = random.normal(0.5, 1, members), random.normal(size=others)
    if ties:
        a, b = a.round(), b.round()
    found = strength("", a, b, 0.95)
    assert found.area == pytest.approx(roc_auc_score([1] * members + [0] * others, np.concatenate([a, b])))
    for asked, rate in zip((0.001, 0.01, 0.1), found.rates, strict=True):
        if rate is None:
            assert asked * others < 1
            continue
        thresholds = [t for t in [-np.inf, *b] if (b > t).sum() <= asked * others]
        assert rate.found == max((a > t).mean() for t in thresholds)
        assert rate.low <= rate.found <= rate.high


def test_a_rate_is_not_stated_where_it_would_be_less_than_one_patient() -> None:
    scores = np.arange(99.0)
    assert found_at(scores, scores, 0.01, 0.95) is None
    assert found_at(scores, np.arange(100.0), 0.01, 0.95) is not None


def test_an_attack_that_guesses_seldom_seems_to_find_more_than_the_default_limit() -> None:
    """The limit of the gate must not refuse sites whose updates tell nothing."""
    random = np.random.default_rng(0)
    level, refused = level_of_each(2), 0
    for _ in range(300):
        attacks = random.normal(size=(2, 150))
        rates = [found_with(scores[:100], scores[100:], 1, level) for scores in attacks]
        refused += max(rate.low for rate in rates) > 0.1
    assert refused <= 6


@given(st.floats(0, 8), st.floats(0, 0.1), st.floats(1e-4, 1))
def test_what_privacy_permits_lies_between_guessing_and_everything(epsilon: float, delta: float, rate: float) -> None:
    """And keeps both inequalities of (ε, δ) hypothesis testing."""
    most = most_found(epsilon, delta, rate)
    assert min(rate, 1.0) - 1e-12 <= most <= 1.0
    assert most <= math.exp(epsilon) * rate + delta + 1e-12
    assert 1 - rate <= math.exp(epsilon) * (1 - most) + delta + 1e-9
    assert most_found(0.0, 0.0, rate) == pytest.approx(rate)
