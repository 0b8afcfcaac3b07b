"""Is the sum of whole numbers the sum of the reals, within the stated step? And is nothing beyond it let by?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import MessageError
from shared.secure_aggregation.masking import Vector
from shared.secure_aggregation.quantisation import REAL_STEP, from_sums, from_words, to_sums, to_words, weight_step
from shared.weights import Weights

LARGEST = 4.0
SHAPES = {"b": (3, 2), "a": (4,), "scalar": (), "empty": (0, 2)}


def weights(seed: int, scale: float = 1.0) -> Weights:
    random = np.random.default_rng(seed)
    return {n: np.asarray(scale * random.uniform(-1, 1, shape), np.float32) for n, shape in SHAPES.items()}


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=6), st.integers(0, 2**16), st.integers(0, 3))
@settings(max_examples=60)
def test_mean_is_exact_to_half_a_step_a_site(examples: list[int], seed: int, absent: int) -> None:
    """Also when sites of the survey are absent from the sum, and whatever the order in which names come."""
    before, most = weights(seed), sum(examples) * (1 + absent)
    total, expected = Vector.zeros(11, 0), {n: np.zeros(s) for n, s in SHAPES.items()}
    for place, count in enumerate(examples):
        after = {n: before[n] + change for n, change in weights(seed + 1 + place, LARGEST).items()}
        reordered = dict(sorted(before.items())) if place % 2 else before
        total.add(Vector(to_words(after, reordered, count / most, 2 * LARGEST), np.zeros(0, np.uint64)))
        for name in SHAPES:
            expected[name] += count * (after[name].astype(np.float64) - before[name])
    share = sum(examples) / most
    found = from_words(total.words, before, share, 2 * LARGEST)
    assert list(found) == list(before)
    bound = len(examples) / 2 * weight_step(2 * LARGEST) / share
    for name in SHAPES:
        mean = before[name] + expected[name] / sum(examples)
        rounding = np.abs(mean) * 2.0**-23 + 1e-12  # of float32
        assert found[name].dtype == np.float32
        assert (np.abs(found[name] - mean) <= bound + rounding).all()


def test_largest_changes_of_all_sites_together_do_not_go_around() -> None:
    before, most, sites = {"a": np.zeros(2, np.float32)}, 7 * 11, 11
    after = {"a": np.array([LARGEST, -LARGEST], np.float32)}
    total = Vector.zeros(2, 0)
    for _ in range(sites):
        total.add(Vector(to_words(after, before, 7 / most, LARGEST), np.zeros(0, np.uint64)))
    np.testing.assert_allclose(from_words(total.words, before, 1.0, LARGEST)["a"], [LARGEST, -LARGEST], rtol=1e-6)


@pytest.mark.parametrize("wrong", [LARGEST * 1.001, -LARGEST * 1.001, math.inf, math.nan])
def test_change_beyond_the_bound_is_an_error_that_names_it(wrong: float) -> None:
    before = weights(0)
    after = {**before, "b": before["b"] + np.float32(wrong)}
    with pytest.raises(MessageError, match=r"weights b must change by at most 4 .*got '6 value\(s\) beyond'"):
        to_words(after, before, 0.5, LARGEST)


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.floats(-1e9, 1e9)), min_size=1, max_size=9),
)
def test_counts_are_exact_and_reals_to_half_a_step(values: list[tuple[int, float]]) -> None:
    total = Vector.zeros(0, 2)
    for count, real in values:
        total.add(Vector(np.zeros(0, np.uint32), to_sums(np.array([count]), np.array([real]), len(values))))
    counts, reals = from_sums(total.sums, 1)
    assert counts.tolist() == [sum(count for count, _ in values)]
    assert abs(reals[0] - math.fsum(real for _, real in values)) <= len(values) * REAL_STEP / 2


@pytest.mark.parametrize("wrong", [2.0**42, -(2.0**42), math.inf, math.nan])
def test_number_that_could_go_around_is_an_error(wrong: float) -> None:
    with pytest.raises(MessageError, match=r"a sum of the site must be small enough to be summed over 3 sites"):
        to_sums(np.array([1]), np.array([0.0, wrong]), 3)
    with pytest.raises(MessageError, match=r"a count of the site must be small enough"):
        to_sums(np.array([2**62]), np.array([0.0]), 3)
