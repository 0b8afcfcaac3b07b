"""In which split is a patient? A keyed hash decides, so that nobody can choose and nothing needs to be stored."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shared.config import Splits, Study

TRAIN, TUNING, HELD_OUT = "train", "tuning", "held_out"


def split_key(study: Study) -> str:
    """The key of a study's splits: every arm and stage of one seed splits alike."""
    return f"fedretina/{study.seed}"


def assign_splits(subjects: pd.Series, splits: Splits, key: str, fixed: pd.DataFrame) -> NDArray[np.object_]:
    """The split of each row's patient: the same for all visits, eyes and scans of that patient.

    Args:
        subjects: patient ids, N rows.
        key: of the hash; another key gives another, independent assignment.
        fixed: columns of ``SUBJECT_SPLITS``; these patients keep their split.
    """
    known = dict(zip(fixed["subject_id"], fixed["split"], strict=True))
    choice = {
        subject: known.get(subject) or _by_hash(int(subject), splits, key.encode()) for subject in subjects.unique()
    }
    assigned: NDArray[np.object_] = subjects.map(choice).to_numpy(dtype=object)
    return assigned


def _by_hash(subject: int, splits: Splits, key: bytes) -> str:
    digest = hmac.new(key, str(subject).encode(), hashlib.sha256).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < splits.train:
        return TRAIN
    return TUNING if position < splits.train + splits.tuning else HELD_OUT
