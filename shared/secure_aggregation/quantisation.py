"""How do real numbers become whole ones whose sum is exact? Fixed point, with a stated step and no silent bound.

A weight's change is multiplied by the site's share of the federation's examples before it is rounded. The shares add up
to at most 1, so the sum stays within the range of a single change however many sites there are: all 32 bits serve
precision. A value beyond its range is an error that names it; nothing is clipped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.errors import MessageError
from shared.secure_aggregation.masking import Sums, Words
from shared.weights import Weights

REAL_STEP = 2.0**-20
_LARGEST_WORD = 2**31 - 2**16  # the rest is for rounding, half a step a site
_LARGEST_SUM = 2**62

Counts = NDArray[np.int64]
Reals = NDArray[np.float64]


def weight_step(largest: float) -> float:
    """The step in which changes of weights are counted, before they are divided by the share of the examples."""
    return largest / _LARGEST_WORD


def no_words() -> Words:
    """Of a sum without weights."""
    return np.empty(0, np.uint32)


def to_words(after: Weights, before: Weights, share: float, largest: float) -> Words:
    """Changes of weights times ``share``, (P,) in the order of their names.

    Args:
        share: of the federation's examples, in [0, 1].
        largest: the largest change that can be told.

    Raises:
        MessageError: a change that is larger, or not finite.
    """
    words = np.empty(size_of(before), np.uint32)
    scale, place = share / weight_step(largest), 0
    for name, start in sorted(before.items()):
        change = np.subtract(after[name], start, dtype=np.float64).reshape(-1)
        outside = int(np.count_nonzero(~(np.abs(change) <= largest)))  # which not-a-number is as well
        if outside:
            rule = f"must change by at most {largest:g} in a round (secure_aggregation.largest_change)"
            remedy = "Train with a lower learning rate, or compose the study with a larger bound."
            raise MessageError(f"weights {name}", rule, value=f"{outside} value(s) beyond", remedy=remedy)
        change *= scale
        np.rint(change, out=change)
        words[place : place + change.size] = change.astype(np.int32).view(np.uint32)
        place += change.size
    return words


def from_words(words: Words, before: Weights, share: float, largest: float) -> Weights:
    """``before``, moved by the sum of all sites' words over the sum of their shares."""
    weights: Weights = dict.fromkeys(before, np.empty(0))  # which keeps the order
    place, scale = 0, weight_step(largest) / share
    for name, start in sorted(before.items()):
        change = words[place : place + start.size].view(np.int32) * scale
        weights[name] = np.add(start, change.reshape(start.shape), dtype=np.float64).astype(start.dtype)
        place += start.size
    return weights


def size_of(weights: Weights) -> int:
    """How many numbers some weights are."""
    return sum(array.size for array in weights.values())


def to_sums(counts: Counts, reals: Reals, sites: int) -> Sums:
    """Counts as they are, reals in steps of ``REAL_STEP``.

    Args:
        sites: that add up at most.

    Raises:
        MessageError: a number so large that the sum could go around.
    """
    steps = np.rint(reals / REAL_STEP)
    largest = _LARGEST_SUM // sites
    for name, values in (("count", counts), ("sum", steps)):
        outside = int(np.count_nonzero(~(np.abs(values) <= largest)))
        if outside:
            rule = f"must be small enough to be summed over {sites} sites"
            remedy = "Give the study's numeric features tighter low and high."
            raise MessageError(f"a {name} of the site", rule, value=f"{outside} value(s) beyond", remedy=remedy)
    return np.concatenate([counts.astype(np.int64), steps.astype(np.int64)]).view(np.uint64)


def from_sums(sums: Sums, counts: int) -> tuple[Counts, Reals]:
    """The inverse of ``to_sums``, of one site or of a sum over sites."""
    whole = sums.view(np.int64)
    return whole[:counts].copy(), np.multiply(whole[counts:], REAL_STEP, dtype=np.float64)
