"""What is the best AUROC that a score can be expected to reach, when the truth of every label is a probability?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def expected_auroc(p_event: NDArray[np.float64], score: NDArray[np.float64]) -> float | None:
    """Expected AUROC of ranking n cases by ``score``.

    The ratio of the expected numbers of concordant and of all pairs of an event and a non-event, over labels drawn
    independently as Bernoulli(``p_event``); tied scores count half. O(n log n). It differs from the mean of the
    per-draw AUROC by O(1/n).

    Args:
        p_event: (n,), true probability of each case's event.
        score: (n,), higher for the likelier event.

    Returns:
        A number in [0, 1]; None where no pair of an event and a non-event can occur.
    """
    order = np.argsort(score, kind="stable")
    p, ranked = p_event[order], score[order]
    starts = np.flatnonzero(np.diff(ranked, prepend=np.nan) != 0)
    if not len(starts):
        return None
    events, others = np.add.reduceat(p, starts), np.add.reduceat(1 - p, starts)
    # A case is never paired with itself, though it counts in both sums of its own group of ties.
    own = np.add.reduceat(p * (1 - p), starts)
    others_below = np.cumsum(others) - others
    concordant = (events * others_below).sum() + 0.5 * (events * others - own).sum()
    pairs = events.sum() * others.sum() - own.sum()
    return float(concordant / pairs) if pairs > 0 else None
