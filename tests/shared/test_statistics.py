"""Are sums of sites the sums of all patients, and the statistics made of them theirs?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.knobs import from_json, to_json
from shared.statistics import Statistics, Survey, merge, numeric_names
from tests.factories import make_study

counts = st.integers(0, 10**6)
sums = st.floats(-1e6, 1e6).map(lambda x: float(round(x)))  # whole, so that addition is exact
surveys = st.builds(
    Survey,
    **dict.fromkeys(("patients", "oct_scans", "ir_scans", "quarantined", "labelled", "positive"), counts),
    **dict.fromkeys(("train_cases", "train_positive", "clinical_cases"), counts),
    counts=st.tuples(counts, counts),
    sums=st.tuples(sums, sums),
    squares=st.tuples(sums.map(abs), sums.map(abs)),
)


@given(surveys, surveys, surveys)
def test_merging_surveys_is_associative_and_commutative(a: Survey, b: Survey, c: Survey) -> None:
    assert merge([merge([a, b]), c]) == merge([a, merge([b, c])]) == merge([c, a, b])


@given(surveys, surveys)
def test_every_field_of_a_merged_survey_is_a_sum(a: Survey, b: Survey) -> None:
    merged = merge([a, b])
    for name in Survey.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(merged, name), np.add(getattr(a, name), getattr(b, name)))


@given(surveys)
def test_a_survey_survives_the_wire(survey: Survey) -> None:
    assert from_json(Survey, to_json(survey)) == survey


def survey_of(values: list[float], positives: int = 0) -> Survey:
    array = np.array(values)
    return Survey(
        train_cases=len(values),
        train_positive=positives,
        counts=(len(values),),
        sums=(float(array.sum()),),
        squares=(float((array**2).sum()),),
    )


@given(st.lists(st.lists(st.floats(-100, 100), min_size=2, max_size=9), min_size=1, max_size=4))
def test_statistics_of_merged_sites_are_those_of_all_values(sites: list[list[float]]) -> None:
    values = np.concatenate(sites)
    found = Statistics.of(merge([survey_of(site) for site in sites]))
    assert found.mean[0] == pytest.approx(values.mean(), abs=1e-9)
    if values.std() > 0.01:
        assert found.deviation[0] == pytest.approx(values.std(), rel=1e-4)


@pytest.mark.parametrize("values", [[], [3.0], [1e6, 1e6, 1e6]])
def test_what_never_varies_is_not_divided_by_nothing(values: list[float]) -> None:
    assert Statistics.of(survey_of(values)).deviation == (1.0,)


@pytest.mark.parametrize(("cases", "positives"), [(0, 0), (10, 0), (10, 10), (10, 5)])
def test_prevalence_is_never_nothing_or_everything(cases: int, positives: int) -> None:
    prevalence = Statistics.of(survey_of([1.0] * cases, positives)).prevalence
    assert 0.0 < prevalence < 1.0
    if 2 * positives == cases:
        assert prevalence == 0.5


def test_neutral_statistics_change_nothing() -> None:
    study = make_study()
    neutral = Statistics.neutral(study)
    assert numeric_names(study) == ("age_years", "systolic")
    assert (neutral.mean, neutral.deviation) == ((0.0, 0.0), (1.0, 1.0))


def test_a_branch_without_inputs_is_no_modality() -> None:
    assert Survey(oct_scans=1, clinical_cases=2).modalities() == ("oct", "clinical")
    assert Survey(ir_scans=1, patients=5).modalities() == ("ir",)
