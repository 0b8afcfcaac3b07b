"""Is a patient's split the patient's own: of no visit, no order, no other patient, no site?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.splits import HELD_OUT, TRAIN, TUNING, assign_splits, split_key
from shared.config import Splits
from shared.site_folder import SPLITS
from tests.factories import make_study

NONE = pd.DataFrame({"subject_id": pd.Series(dtype=np.int64), "split": pd.Series(dtype=object)})
subjects = st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=30)


def assign(ids: list[int], splits: Splits | None = None, key: str = "k", fixed: pd.DataFrame = NONE) -> list[str]:
    return list(assign_splits(pd.Series(ids, dtype=np.int64), splits or Splits(), key, fixed))


@given(subjects)
def test_all_rows_of_a_patient_are_in_one_split(ids: list[int]) -> None:
    twice = assign(ids + ids)
    assert twice[: len(ids)] == twice[len(ids) :]


@given(subjects, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(ids: list[int], dice: object) -> None:
    order = list(range(len(ids)))
    dice.shuffle(order)  # type: ignore[attr-defined]
    splits = assign(ids)
    assert assign([ids[i] for i in order]) == [splits[i] for i in order]


@given(subjects, subjects)
def test_other_patients_do_not_matter(ids: list[int], others: list[int]) -> None:
    """So a site that pools several splits its patients as each of them does."""
    assert assign(others + ids)[len(others) :] == assign(ids)


def test_fractions_are_about_those_asked() -> None:
    found = pd.Series(assign(list(range(20_000)), Splits(0.6, 0.1, 0.3))).value_counts(normalize=True)
    assert abs(found[TRAIN] - 0.6) < 0.015
    assert abs(found[TUNING] - 0.1) < 0.015
    assert abs(found[HELD_OUT] - 0.3) < 0.015


def test_fractions_hold_for_patients_numbered_by_tens() -> None:
    found = pd.Series(assign(list(range(0, 200_000, 10)))).value_counts(normalize=True)
    assert abs(found[TRAIN] - 0.6) < 0.015


@pytest.mark.parametrize("power", [1, 3, 6, 9, 12, 18])
def test_every_digit_of_a_patients_number_counts(power: int) -> None:
    ids = list(range(500))
    moved = assign([i + 10**power for i in ids])
    assert sum(a != b for a, b in zip(assign(ids), moved, strict=True)) > 150  # 270 were they independent


def test_no_patient_tunes_where_the_fraction_is_zero() -> None:
    assert set(assign(list(range(2000)), Splits(0.5, 0.0, 0.5))) == {TRAIN, HELD_OUT}


def test_a_larger_training_fraction_takes_no_patient_out_of_training() -> None:
    ids = list(range(2000))
    small, large = assign(ids, Splits(0.4, 0.2, 0.4)), assign(ids, Splits(0.6, 0.2, 0.2))
    assert all(after == TRAIN for before, after in zip(small, large, strict=True) if before == TRAIN)


@given(st.integers(0, 2**31 - 2))
def test_another_seed_splits_anew(seed: int) -> None:
    keys = [split_key(make_study({"seed": s})) for s in (seed, seed + 1)]
    ids = list(range(200))
    one, other = (assign(ids, key=key) for key in keys)
    assert one == assign(ids, key=keys[0])
    assert sum(a != b for a, b in zip(one, other, strict=True)) > 20


def test_the_key_is_the_seed_alone() -> None:
    changes = {"name": "x", "modalities": ["clinical"], "pretrain.rounds": 0, "finetune.rounds": 9}
    assert split_key(make_study(changes)) == split_key(make_study())


@given(st.lists(st.sampled_from(SPLITS), min_size=5, max_size=5))
def test_splits_that_the_site_fixed_win_and_touch_nobody_else(chosen: list[str]) -> None:
    ids = list(range(10))
    fixed = pd.DataFrame({"subject_id": range(5), "split": chosen})
    assert assign(ids, fixed=fixed) == chosen + assign(ids)[5:]


def test_no_rows_give_no_splits() -> None:
    assert assign([]) == []


def test_a_known_patient_stays_where_past_runs_put_them() -> None:
    """Every change of the hash moves held-out patients into training sets of recorded runs."""
    found = assign(list(range(1, 25)), key="fedretina/1")
    assert [i for i, split in enumerate(found, start=1) if split == HELD_OUT] == [8, 10, 11, 14, 15, 17, 18]
    assert [i for i, split in enumerate(found, start=1) if split == TUNING] == [23]
