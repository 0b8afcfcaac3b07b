"""Do counts leave with the noise that was paid for, and stay counts?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.counts import CELLS, _nearest, _rounded, noised_fraction, noised_scores, noised_survey
from shared.knobs import dump
from shared.metrics import auroc, score
from shared.statistics import Statistics, Survey
from tests.factories import make_study

STUDY = make_study()


def some(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random(count) < 0.2).astype(np.float64)
    return random.normal(size=count) + 1.5 * labels - 1.5, labels, random.integers(0, max(count // 2, 1), count)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=12), st.integers(1, 60))
def test_the_nearest_counts_are_not_negative_sum_up_and_no_others_are_nearer(values: list[float], total: int) -> None:
    counts = np.array(values)
    found = _nearest(counts, total)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(total)
    # Optimality of a projection: moving mass between any two cells cannot come closer.
    slope = found - counts
    assert slope[found > 1e-9].max(initial=-math.inf) <= slope.min() + 1e-6
    whole = _rounded(found)
    assert whole.sum() == total
    assert (abs(whole - found) <= 1 + 1e-9).all()


@given(st.integers(1, 200), st.floats(0.01, 30), st.floats(0.01, 0.99))
def test_noised_scores_are_scores_of_the_patients(count: int, noise: float, prevalence: float) -> None:
    logits, labels, subjects = some(count)
    found = noised_scores(logits, labels, subjects, prevalence, noise, np.random.default_rng(1))
    found.check("scores")
    assert found.cases == len(np.unique(subjects))
    assert np.count_nonzero(found.positives) <= CELLS


def test_noised_scores_of_many_patients_say_what_exact_ones_say() -> None:
    logits, labels, _ = some(20_000)
    subjects = np.arange(20_000)
    exact, found = score(logits, labels), noised_scores(logits, labels, subjects, 0.2, 3.0, np.random.default_rng(2))
    assert auroc(found) == pytest.approx(auroc(exact), abs=0.01)
    assert found.positives.sum() == pytest.approx(exact.positives.sum(), abs=100)
    assert found.log_loss / found.cases == pytest.approx(exact.log_loss / exact.cases, rel=0.05)


def test_no_case_has_no_scores() -> None:
    nothing = np.empty(0)
    assert noised_scores(nothing, nothing, nothing.astype(int), 0.5, 1.0, np.random.default_rng(0)).cases == 0


@given(st.integers(1, 20), st.integers(0, 1))
def test_a_patient_moves_a_count_by_one_whatever_number_of_cases(cases: int, label: int) -> None:
    """The same noise with and without a patient of many cases: the noised counts differ by the patient alone."""
    labels, subjects = np.repeat([1.0, 0.0], 20), np.arange(40)
    more = np.concatenate([labels, np.full(cases, float(label))]), np.concatenate([subjects, np.full(cases, 99)])

    def count(labels: np.ndarray, subjects: np.ndarray) -> float:
        patients = len(np.unique(subjects))
        return noised_fraction(labels, subjects, 0.5, np.random.default_rng(3)) * (patients + 1) - 0.5

    assert count(*more) - count(labels, subjects) == pytest.approx(label)


def test_the_noise_of_the_fraction_has_the_deviation_that_was_paid_for() -> None:
    labels, subjects = np.repeat([0.0, 1.0], 500), np.arange(1000)
    random = np.random.default_rng(4)
    found = np.array([noised_fraction(labels, subjects, 7.0, random) * 1001 - 0.5 for _ in range(3000)])
    assert found.mean() == pytest.approx(500, abs=4 * 7 / math.sqrt(3000))
    assert found.std() == pytest.approx(7.0, rel=4 / math.sqrt(6000))


def test_a_noised_survey_tells_sizes_and_the_fraction_and_nothing_else() -> None:
    shared = {"patients": 90, "oct_scans": 30, "ir_scans": 20, "labelled": 60, "train_cases": 40}
    one = Survey(
        **shared,
        quarantined=3,
        positive=9,
        train_positive=7,
        clinical_cases=55,
        counts=(40, 31),
        sums=(2e3, 4e3),
        squares=(1e5, 6e5),
    )
    other = Survey(
        **shared,
        quarantined=0,
        positive=1,
        train_positive=1,
        clinical_cases=20,
        counts=(12, 2),
        sums=(5e2, 2e2),
        squares=(3e4, 3e4),
    )
    found = noised_survey(one, STUDY, 0.25)
    assert found == noised_survey(other, STUDY, 0.25)
    assert {name: getattr(found, name) for name in shared} == shared
    statistics = Statistics.of(found)
    assert statistics.prevalence == pytest.approx(0.25, abs=0.02)
    assert statistics.mean == pytest.approx((60.0, 175.0))  # of age, and of the range that the study declares
    assert statistics.deviation == pytest.approx((20.0, 62.5))


def test_values_are_standardised_by_what_the_study_expects() -> None:
    numeric = [dump(STUDY.features.numeric[0]) | {"usual_low": 100.0, "usual_high": 180.0}]
    shared = {"labelled": 60, "train_cases": 40, "counts": (0, 0), "sums": (0.0, 0.0), "squares": (0.0, 0.0)}
    statistics = Statistics.of(noised_survey(Survey(**shared), make_study({"features.numeric": numeric}), 0.25))
    assert statistics.mean[1] == pytest.approx(140.0)
    assert statistics.deviation[1] == pytest.approx(20.0)  # about 95 % lie within two of them


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_whatever_the_noise_the_fraction_has_a_logarithm(label: float) -> None:
    random = np.random.default_rng(5)
    found = [noised_fraction(np.full(4, label), np.arange(4), 50.0, random) for _ in range(200)]
    assert 0.0 < min(found) < max(found) < 1.0
