"""Are figures made of counts the figures of the cases, however sites are merged?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from shared.errors import MessageError
from shared.metrics import (
    BINS,
    Scores,
    auroc,
    auroc_variance,
    average_precision,
    calibration_bins,
    empty_scores,
    mean_auroc,
    recalibration,
    roc,
    score,
)

Cases = list[tuple[float, bool]]
# Logits a bin's width apart at least, or equal: then binning loses nothing.
on_grid = st.lists(st.tuples(st.integers(-190, 190).map(lambda i: i * 0.05 + 0.0025), st.booleans()), max_size=40)
anywhere = st.lists(st.tuples(st.floats(-12, 12), st.booleans()), max_size=40)


def of(cases: Cases) -> Scores:
    logits, labels = arrays(cases)
    return score(logits, labels)


def arrays(cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    return np.array([c[0] for c in cases], dtype=float), np.array([float(c[1]) for c in cases])


def has_both(cases: Cases) -> bool:
    return len({label for _, label in cases}) == 2


def same(a: Scores, b: Scores) -> bool:
    return (
        np.array_equal(a.positives, b.positives)
        and np.array_equal(a.negatives, b.negatives)
        and math.isclose(a.log_loss, b.log_loss, rel_tol=1e-12, abs_tol=1e-12)
        and math.isclose(a.squares, b.squares, rel_tol=1e-12, abs_tol=1e-12)
    )


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


# Merging


@given(anywhere, anywhere)
def test_merged_counts_are_those_of_all_cases_together(a: Cases, b: Cases) -> None:
    assert same(of(a) + of(b), of(a + b))


@given(anywhere, anywhere, anywhere)
def test_merging_is_associative_and_commutative(a: Cases, b: Cases, c: Cases) -> None:
    assert same((of(a) + of(b)) + of(c), of(a) + (of(b) + of(c)))
    assert same(of(a) + of(b), of(b) + of(a))


@given(anywhere)
def test_no_case_is_neutral(cases: Cases) -> None:
    assert same(of(cases) + empty_scores(), of(cases))
    assert of(cases).cases == len(cases)


@pytest.mark.parametrize("logit", [1e3, 1e19, 1e300])
def test_a_huge_logit_counts_at_its_own_end(logit: float) -> None:
    scores = of([(logit, True), (-logit, False)])
    assert scores.positives[-1] == scores.negatives[0] == 1
    assert auroc(scores) == 1.0
    assert scores.squares == pytest.approx(0.0)


# Against scikit-learn


@given(on_grid)
def test_auroc_is_that_of_scikit_learn(cases: Cases) -> None:
    assume(has_both(cases))
    logits, labels = arrays(cases)
    assert auroc(of(cases)) == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)


@given(anywhere)
def test_binning_moves_auroc_by_half_of_the_pairs_that_share_a_bin_at_most(cases: Cases) -> None:
    assume(has_both(cases))
    logits, labels = arrays(cases)
    scores = of(cases)
    shared = (scores.positives * scores.negatives).sum() / (scores.positives.sum() * scores.negatives.sum())
    assert abs((auroc(scores) or 0.0) - roc_auc_score(labels, logits)) <= 0.5 * shared + 1e-12


@given(on_grid)
def test_average_precision_is_that_of_scikit_learn(cases: Cases) -> None:
    assume(has_both(cases))
    logits, labels = arrays(cases)
    assert average_precision(of(cases)) == pytest.approx(average_precision_score(labels, logits), abs=1e-12)


@given(anywhere)
def test_log_loss_and_brier_are_those_of_scikit_learn(cases: Cases) -> None:
    assume(cases)
    logits, labels = arrays(cases)
    scores = of(cases)
    assert scores.log_loss / len(cases) == pytest.approx(log_loss(labels, sigmoid(logits), labels=[0, 1]), rel=1e-9)
    assert scores.squares / len(cases) == pytest.approx(brier_score_loss(labels, sigmoid(logits)), rel=1e-9, abs=1e-12)


def delong(logits: np.ndarray, labels: np.ndarray) -> float:
    """Structural components, pair by pair (DeLong et al. 1988, equations 4 to 6)."""
    positive, negative = logits[labels > 0.5], logits[labels < 0.5]
    psi = [[1.0 if x > y else 0.5 if x == y else 0.0 for y in negative] for x in positive]
    m, n = len(positive), len(negative)
    theta = sum(map(sum, psi)) / (m * n)
    v10 = [sum(row) / n for row in psi]
    v01 = [sum(psi[i][j] for i in range(m)) / m for j in range(n)]
    s10 = sum((v - theta) ** 2 for v in v10) / (m - 1)
    s01 = sum((v - theta) ** 2 for v in v01) / (n - 1)
    return s10 / m + s01 / n


@given(on_grid)
def test_variance_is_delongs_pair_by_pair(cases: Cases) -> None:
    logits, labels = arrays(cases)
    assume(labels.sum() >= 2)
    assume((1 - labels).sum() >= 2)
    assert auroc_variance(of(cases)) == pytest.approx(delong(logits, labels), rel=1e-9, abs=1e-12)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Cases drawn from two normals one deviation apart: the true AUROC is known."""
    random, truth, covered = np.random.default_rng(3), 0.7602499, 0
    for _ in range(200):
        labels = (random.random(300) < 0.3).astype(float)
        sites = [score(random.normal(size=300) + labels, labels) for _ in range(2)]
        interval = mean_auroc(sites)[1]
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert 0.90 <= covered / 200 <= 0.99


@given(st.lists(on_grid, max_size=4))
def test_mean_auroc_is_the_mean_over_the_sites_that_have_one(sites: list[Cases]) -> None:
    areas = [roc_auc_score(*reversed(arrays(site))) for site in sites if has_both(site)]
    mean, interval = mean_auroc([of(site) for site in sites])
    assert mean == (pytest.approx(np.mean(areas)) if areas else None)
    if interval is not None and mean is not None:
        assert 0.0 <= interval[0] <= mean + 1e-9
        assert mean - 1e-9 <= interval[1] <= 1.0


def test_mean_auroc_does_not_compare_cases_of_two_sites() -> None:
    """Each site ranks perfectly; pooled they do not, as one lies above the other."""
    low, high = of([(-9.0, False), (-8.0, True)]), of([(8.0, False), (9.0, True)])
    assert mean_auroc([low, high])[0] == 1.0
    assert auroc(low + high) == 0.75


# Curves


@given(anywhere)
def test_the_roc_rises_from_nothing_to_everything(cases: Cases) -> None:
    assume(has_both(cases))
    curve = roc(of(cases))
    assert (curve[0], curve[-1]) == ((0.0, 0.0), (1.0, 1.0))
    assert all(a <= c and b <= d for (a, b), (c, d) in itertools.pairwise(curve))
    assert len(curve) <= 101


@given(on_grid)
def test_the_area_under_the_roc_is_the_auroc(cases: Cases) -> None:
    assume(has_both(cases))
    false, true = np.array(roc(of(cases))).T
    assert np.trapezoid(true, false) == pytest.approx(auroc(of(cases)), abs=1e-4)


def test_a_roc_of_many_points_is_thinned_to_its_shape() -> None:
    random = np.random.default_rng(1)
    labels = (random.random(5000) < 0.5).astype(float)
    scores = score(random.normal(size=5000) + labels, labels)
    curve = roc(scores)
    assert 90 <= len(curve) <= 101
    false, true = np.array(curve).T
    assert np.trapezoid(true, false) == pytest.approx(auroc(scores), abs=2e-3)


@given(anywhere, st.integers(1, 12))
def test_calibration_bins_hold_every_case_once(cases: Cases, bins: int) -> None:
    rows = calibration_bins(of(cases), bins)
    assert sum(row["cases"] for row in rows) == len(cases)
    assert sum(row["observed"] * row["cases"] for row in rows) == pytest.approx(sum(c[1] for c in cases), abs=1e-3)
    predicted = [row["predicted"] for row in rows]
    assert predicted == sorted(predicted)
    assert len(rows) <= bins


def test_calibration_bins_of_true_risks_lie_on_the_diagonal() -> None:
    random = np.random.default_rng(5)
    logits = random.normal(size=20_000) * 1.5
    rows = calibration_bins(score(logits, (random.random(20_000) < sigmoid(logits)).astype(float)))
    assert len(rows) == 10
    for row in rows:
        assert abs(row["predicted"] - row["observed"]) < 0.04
        assert abs(row["cases"] - 2000) < 200


# Recalibration


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.5, 1.0), (2.0, -1.5), (-0.7, 0.2), (0.1, -4.0)])
def test_recalibration_is_logistic_regression_on_the_logit(slope: float, intercept: float) -> None:
    random = np.random.default_rng(11)
    width = 20 / BINS
    logits = (random.integers(-300, 300, size=800) + 0.5) * width  # centres of bins
    labels = (random.random(800) < sigmoid(slope * logits + intercept)).astype(float)
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits[:, None], labels)
    assert recalibration(score(logits, labels)) == pytest.approx((fitted.coef_[0, 0], fitted.intercept_[0]), abs=1e-4)


def test_true_risks_need_no_recalibration() -> None:
    random = np.random.default_rng(2)
    logits = random.normal(size=100_000)
    labels = (random.random(100_000) < sigmoid(logits)).astype(float)
    assert recalibration(score(logits, labels)) == pytest.approx((1.0, 0.0), abs=0.03)


# Degenerate


@pytest.mark.parametrize("figure", [auroc, auroc_variance, recalibration])
@pytest.mark.parametrize("cases", [[], [(0.5, True), (1.0, True)], [(0.5, False)]])
def test_one_class_alone_has_no_figure(figure: Callable[[Scores], object], cases: Cases) -> None:
    assert figure(of(cases)) is None
    assert roc(of(cases)) == []


def test_no_positive_case_has_no_precision() -> None:
    assert average_precision(of([(0.5, False)])) is None


def test_one_case_of_a_class_has_no_variance_and_no_interval() -> None:
    lonely = of([(0.0, True), (1.0, False), (2.0, False)])
    assert auroc_variance(lonely) is None
    assert mean_auroc([lonely]) == (0.0, None)


def test_no_site_has_no_mean() -> None:
    assert mean_auroc([]) == (None, None)


def test_no_case_has_no_calibration() -> None:
    assert calibration_bins(empty_scores()) == []


@given(on_grid)
def test_recalibration_ends_in_finite_numbers_or_none(cases: Cases) -> None:
    """Separated classes have no finite line."""
    found = recalibration(of(cases))
    assert found is None or all(math.isfinite(number) for number in found)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"positives": np.zeros(3, np.int64)}, "x.positives"),
        ({"negatives": np.full(BINS, -1)}, "x.negatives"),
        ({"log_loss": -0.1}, "x.log_loss"),
        ({"squares": math.nan}, "x.squares"),
    ],
)
def test_scores_that_cannot_be_are_refused(change: dict[str, object], name: str) -> None:
    parts = {"positives": np.zeros(BINS), "negatives": np.zeros(BINS), "log_loss": 0.0, "squares": 0.0}
    with pytest.raises(MessageError) as caught:
        Scores(**(parts | change)).check("x")  # type: ignore[arg-type]
    assert caught.value.name == name
