"""Are updates that nobody should believe rejected, and honest ones of sites of all sizes taken?"""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from server.study import run_study
from server.vetting import check_claims, check_scores, find_outliers, update_size
from shared.config import Study
from shared.errors import MessageError
from shared.messages import ARRAYS, Update, decode_weights, encode_weights
from shared.metrics import empty_scores, score
from shared.statistics import Survey
from tests.server.federations import FaultyGrid, clinical_sites, clinical_study

SURVEY = Survey(patients=50, oct_scans=30, ir_scans=10, labelled=20, train_cases=12)
UPDATE = Update("north", "finetune", 1, {"a": np.ones(4, np.float32)}, 12, 0.5, empty_scores(), 0.1)


def test_claims_within_the_survey_are_taken() -> None:
    check_claims(UPDATE, SURVEY)
    check_claims(dataclasses.replace(UPDATE, stage="pretrain", examples=40), SURVEY)
    check_scores(score(np.zeros(20), np.arange(20) % 2), SURVEY)


@pytest.mark.parametrize(("stage", "examples", "most"), [("finetune", 13, 12), ("pretrain", 41, 40)])
def test_more_examples_than_surveyed_are_refused(stage: str, examples: int, most: int) -> None:
    with pytest.raises(MessageError, match=f"must be <= {most}, as the site stated in its survey, got {examples}"):
        check_claims(dataclasses.replace(UPDATE, stage=stage, examples=examples), SURVEY)


def test_more_scored_cases_than_surveyed_are_refused() -> None:
    scores = score(np.zeros(21), np.arange(21) % 2)
    with pytest.raises(MessageError, match="scored cases must be <= 20"):
        check_scores(scores, SURVEY)
    with pytest.raises(MessageError, match="scored cases must be <= 20"):
        check_claims(dataclasses.replace(UPDATE, tuning=scores), SURVEY)


def test_size_is_the_norm_of_the_change_for_each_root_of_an_example() -> None:
    before = {"a": np.array([1.0, 2.0], np.float32), "b": np.array(5.0, np.float32)}
    after = {"a": np.array([4.0, 2.0], np.float32), "b": np.array(1.0, np.float32)}
    update = dataclasses.replace(UPDATE, weights=after, examples=25)
    assert update_size(update, before) == pytest.approx(1.0)  # sqrt(9 + 16) / sqrt(25)


# What is usual


def limited(limit: float) -> Study:
    return clinical_study({"strategy.norm_limit": limit})


@given(
    sizes=st.lists(st.floats(0.1, 0.9), min_size=3, max_size=12),
    history=st.lists(st.floats(0.1, 0.9), max_size=10),
)
def test_sizes_within_the_limit_of_each_other_are_never_rejected(sizes: list[float], history: list[float]) -> None:
    named = {f"site-{i}": size for i, size in enumerate(sizes)}
    assert find_outliers(named, history, limited(10.0)) == {}


@given(sizes=st.lists(st.floats(0.1, 0.9), min_size=2, max_size=12), factor=st.floats(10.01, 1e6))
def test_one_that_is_far_larger_than_all_is_rejected_by_name(sizes: list[float], factor: float) -> None:
    named = {f"site-{i}": size for i, size in enumerate(sizes)} | {"odd": max(sizes) * factor}
    rejected = find_outliers(named, [], limited(10.0))
    assert list(rejected) == ["odd"]
    assert "must be at most 10 times what is usual here (strategy.norm_limit)" in rejected["odd"]


def test_history_tells_what_is_usual_when_most_sites_are_odd() -> None:
    assert set(find_outliers({"a": 100.0, "b": 100.0}, [1.0, 1.1, 0.9], limited(10.0))) == {"a", "b"}


def test_nothing_is_usual_with_fewer_than_three_sizes_and_a_limit_of_zero_rejects_none() -> None:
    assert find_outliers({"a": 1e9, "b": 1.0}, [], limited(10.0)) == {}
    assert find_outliers({"a": 1e9, "b": 1.0, "c": 1.0, "d": 1.0}, [], limited(0.0)) == {}


# In a study


def scaled(reply: Message, factor: float) -> Message:
    arrays = reply.content.array_records[ARRAYS]
    weights = {name: np.asarray(array * factor, np.float32) for name, array in decode_weights(arrays).items()}
    reply.content.array_records[ARRAYS] = encode_weights(weights)
    return reply


def test_scaled_update_is_left_out_and_the_result_is_that_without_the_site(tmp_path: Path) -> None:
    study = clinical_study({"finetune.rounds": 1, "finetune.select": "last"})
    sites = clinical_sites(tmp_path / "sites", count=4)

    def scale(site: int, turn: int, reply: Message) -> list[Message]:
        return [scaled(reply, 1000.0) if site == 2 and turn == 2 else reply]

    state = run_study(study, FaultyGrid(sites, scale), tmp_path / "run")
    (record,) = [record for record in state.records if record.stage == "finetune"]
    assert record.sites == ["site-00", "site-01", "site-03"]
    assert "times what is usual here" in record.failed["site-02"]
    assert all(np.abs(array).max() < 100 for array in state.weights.values())


def test_answer_of_another_round_is_left_out(tmp_path: Path) -> None:
    study, kept = clinical_study({"finetune.rounds": 2}), []

    def replay(site: int, turn: int, reply: Message) -> list[Message]:
        if site == 1 and turn == 2:
            kept.append(deepcopy(reply.content))
        elif site == 1 and turn == 3:
            reply.content = kept.pop()
        return [reply]

    state = run_study(study, FaultyGrid(clinical_sites(tmp_path / "sites"), replay), tmp_path / "run")
    first, second = [record for record in state.records if record.stage == "finetune"]
    assert first.failed == {}
    assert second.failed == {"site-01": "update must be of finetune round 2, got 'finetune round 1'"}
