"""Is an update believable? Its counts against the site's survey, its size against what is usual in the federation.

Names, shapes, dtypes and finiteness are checked before, in ``shared.messages``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from shared.config import PRETRAIN, Study
from shared.errors import MessageError
from shared.messages import Update
from shared.metrics import Scores
from shared.statistics import Survey
from shared.weights import Weights

_ROUNDS = 5  # of the history that say what is usual
_FEWEST = 3  # sizes without which nothing is usual
_BLOCK = 2**22  # weights that are compared at once


def check_claims(update: Update, survey: Survey) -> None:
    """Raise ``MessageError`` for an update of more examples or cases than the site stated in its survey."""
    most = most_examples(survey, update.stage)
    if update.examples > most:
        rule = f"must be <= {most}, as the site stated in its survey"
        raise MessageError("update: examples", rule, value=update.examples)
    check_scores(update.tuning, survey)


def most_examples(survey: Survey, stage: str) -> int:
    """Training examples that there can be in a stage."""
    return survey.oct_scans + survey.ir_scans if stage == PRETRAIN else survey.train_cases


def check_scores(scores: Scores, survey: Survey) -> None:
    """Raise ``MessageError`` for scores of more cases than the site stated in its survey."""
    if scores.cases > survey.labelled:
        rule = f"must be <= {survey.labelled}, as the site stated in its survey"
        raise MessageError("scored cases", rule, value=scores.cases)


def update_size(update: Update, before: Weights) -> float:
    """Euclidean norm of the change, over the square root of the site's examples: sites of all sizes are comparable.

    An optimizer's path grows with its steps, and at most in proportion to them.
    """
    squares = 0.0
    for name, array in update.weights.items():
        after, start = array.reshape(-1), before[name].reshape(-1)
        for place in range(0, after.size, _BLOCK):  # the change of a large model would be another one in memory
            change = np.subtract(after[place : place + _BLOCK], start[place : place + _BLOCK], dtype=array.dtype)
            squares += float(np.dot(change, change))
    return math.sqrt(squares / update.examples)


def find_outliers(sizes: Mapping[str, float], history: Sequence[float], study: Study) -> dict[str, str]:
    """The sites whose updates are far larger than is usual, with the reason.

    Args:
        sizes: of this round's updates, by site.
        history: median sizes of the stage's earlier rounds.
    """
    limit, known = study.strategy.norm_limit, [*history[-_ROUNDS:], *sizes.values()]
    usual = statistics.median(known) if known else 0.0
    if not limit or not usual or len(known) < _FEWEST:
        return {}
    rule = f"must be at most {limit:g} times what is usual here (strategy.norm_limit)"
    return {
        site: str(MessageError("size of the update", rule, value=f"{size / usual:.1f} times"))
        for site, size in sizes.items()
        if size > limit * usual
    }
