"""Does a study keep its laws: one site equals centralised, resumed equals uninterrupted, a failing site is left out?"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from client import work
from client.store import open_store
from server import sites as sites_module
from server.sites import StudyError
from server.state import load_state
from server.study import MODEL, PRETRAINED, run_study
from shared.checkpoints import load_arrays
from shared.config import FINETUNE, PRETRAIN, Study
from shared.errors import CheckpointError, SiteError
from shared.messages import ARRAYS, CONFIG, METRICS, Task, decode_weights, encode_weights
from shared.objectives.registry import build_objective
from shared.statistics import Statistics, merge
from shared.weights import carry_encoders, read_weights
from simulation.grid import LocalGrid
from tests.factories import make_study
from tests.server.federations import (
    CutError,
    FaultyGrid,
    assert_same_bits,
    assert_same_outcome,
    clinical_site,
    clinical_sites,
    clinical_study,
    cut_after,
    image_sites,
    refused,
    rounds_of,
)

WITH_IMAGES: dict[str, Any] = {
    "pretrain": {"rounds": 2, "batch_size": 8, "augmentation": {"crop_area": 0.3, "flip": 0.5, "noise": 0.1}},
    "finetune": {"rounds": 2, "batch_size": 4, "encoder_lr": 0.5},
}


def image_study(changes: dict[str, Any]) -> Study:
    return make_study(deepcopy({**WITH_IMAGES, **changes}))


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three sites without scans; read them, do not change them."""
    return clinical_sites(tmp_path_factory.mktemp("clinical"))


@pytest.fixture(scope="module")
def with_scans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sites with scans; read them, do not change them."""
    return image_sites(tmp_path_factory.mktemp("images"))


# One site equals centralised


def test_one_site_equals_the_plain_training_calls_bit_for_bit(tmp_path: Path, with_scans: list[Path]) -> None:
    study = image_study({"finetune.select": "last"})
    site = with_scans[0]
    run_study(study, LocalGrid([site]), tmp_path / "run")

    statistics = Statistics.of(open_store(site, study).survey())
    first = read_weights(build_objective(study, PRETRAIN, statistics))
    for number in (1, 2):
        first = work.train_round(site, Task(study, PRETRAIN, number, 2, "", statistics, first)).weights
    second = carry_encoders(first, read_weights(build_objective(study, FINETUNE, statistics)), "model.")
    for number in (1, 2):
        second = work.train_round(site, Task(study, FINETUNE, number, 2, "", statistics, second)).weights

    assert_same_bits(load_arrays(tmp_path / "run" / PRETRAINED)[0], first)
    by_hand = {name.removeprefix("model."): array for name, array in second.items()}
    assert_same_bits(load_arrays(tmp_path / "run" / MODEL)[0], by_hand)


def test_round_is_the_average_weighted_by_examples(tmp_path: Path, sites: list[Path]) -> None:
    study = clinical_study({"finetune.rounds": 1, "finetune.select": "last"})
    run_study(study, LocalGrid(sites), tmp_path / "run")
    statistics = Statistics.of(merge([open_store(site, study).survey() for site in sites]))
    weights = read_weights(build_objective(study, FINETUNE, statistics))
    updates = [work.train_round(site, Task(study, FINETUNE, 1, 1, "", statistics, weights)) for site in sites]

    found, _ = load_arrays(tmp_path / "run" / MODEL)
    examples = np.array([len(open_store(site, study).rows_of_cases("train")) for site in sites], dtype=np.float64)
    assert len(set(examples)) == len(examples)  # equal sizes would not tell
    for name, array in found.items():
        stacked = np.stack([update.weights[f"model.{name}"].astype(np.float64) for update in updates])
        average = np.tensordot(examples / examples.sum(), stacked, axes=1)
        np.testing.assert_allclose(array, average, rtol=2e-6, atol=1e-7)


def test_best_keeps_the_round_with_the_lowest_tuning_loss(tmp_path: Path, sites: list[Path]) -> None:
    # A rate at which training diverges: the last weights are not the best ones.
    study = clinical_study({"finetune": {"rounds": 5, "batch_size": 8, "lr": 1.0, "schedule": "constant", "warmup": 0}})
    weights = []
    grid = LocalGrid(sites)
    state = run_study(study, grid, tmp_path / "run", lambda record: weights.append(saved_weights(tmp_path, study)))
    losses = {}
    for number, candidate in enumerate(weights[1:-1], start=1):  # after each round
        task = Task(study, "evaluate", 0, 0, "tuning", state.statistics, candidate)
        scores = [work.evaluate_split(site, task).scores for site in sites]
        losses[number] = sum(s.log_loss for s in scores) / sum(s.cases for s in scores)
    best = min(losses, key=lambda number: losses[number])
    assert best != 5, losses
    assert_same_bits(state.weights, weights[best])
    assert state.best_loss == pytest.approx(losses[best], rel=1e-12)


def saved_weights(folder: Path, study: Study) -> Any:
    return load_state(folder / "run", study).weights


# Resumed equals uninterrupted


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "fedavg"},
        {"name": "fedavgm", "arguments": {"server_momentum": 0.9, "server_learning_rate": 0.7}},
        {"name": "fedadam", "arguments": {"eta": 0.01}},
    ],
    ids=lambda strategy: strategy["name"],
)
def test_run_cut_after_every_phase_ends_as_the_uninterrupted(
    tmp_path: Path, with_scans: list[Path], strategy: dict[str, Any]
) -> None:
    study = image_study({"modalities": ["oct", "clinical"], "strategy": strategy})
    whole = run_study(study, LocalGrid(with_scans), tmp_path / "whole")
    phases = [(record.stage, record.round) for record in whole.records]
    stages = ["survey", "pretrain", "pretrain", "finetune", "finetune", "evaluate"]
    assert phases == list(zip(stages, [1, 1, 2, 1, 2, 1], strict=True))
    for done in range(1, len(phases) + 1):
        with pytest.raises(CutError):
            run_study(study, LocalGrid(with_scans), tmp_path / "cut", cut_after(1))
        assert len(rounds_of(tmp_path / "cut")) == done  # each start does one phase and no more
    state = run_study(study, LocalGrid(with_scans), tmp_path / "cut")
    assert state.records[-1].stage == "evaluate"
    assert_same_outcome(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("strategy", [{"name": "fedavg"}, {"name": "fedadagrad", "arguments": {"eta": 0.01}}])
def test_run_cut_in_the_middle_of_a_round_ends_as_the_uninterrupted(
    tmp_path: Path, sites: list[Path], strategy: dict[str, Any]
) -> None:
    study = clinical_study({"strategy": strategy})

    run_study(study, LocalGrid(sites), tmp_path / "whole")
    for last in range(1, 7):  # survey, three rounds, tuning, held out

        def die(site: int, turn: int, reply: Message, last: int = last) -> list[Message]:
            if site == 1 and turn == last:
                raise CutError
            return [reply]

        folder = tmp_path / f"cut-{last}"
        with pytest.raises(CutError):
            run_study(study, FaultyGrid(sites, die), folder)
        run_study(study, LocalGrid(sites), folder)
        assert_same_outcome(tmp_path / "whole", folder)


def test_finished_run_is_not_run_again(tmp_path: Path, sites: list[Path]) -> None:
    study = clinical_study()
    first = run_study(study, LocalGrid(sites), tmp_path / "run")

    def never(site: int, turn: int, reply: Message) -> list[Message]:
        raise AssertionError("a finished study asks nobody")

    again = run_study(study, FaultyGrid(sites, never), tmp_path / "run")
    assert again.records == first.records
    assert_same_bits(again.weights, first.weights)


def test_failing_site_has_its_name_after_a_resume(tmp_path: Path, sites: list[Path]) -> None:
    study = clinical_study()

    def refuse(site: int, turn: int, reply: Message) -> list[Message]:
        return [refused(reply, "no")] if site == 1 else [reply]

    with pytest.raises(CutError):
        run_study(study, LocalGrid(sites), tmp_path / "run", cut_after(1))
    state = run_study(study, FaultyGrid(sites, refuse), tmp_path / "run")
    assert [set(record.failed) for record in state.records] == [set(), *[{"site-01"}] * 4]


def test_another_studys_folder_is_refused(tmp_path: Path, sites: list[Path]) -> None:
    run_study(clinical_study(), LocalGrid(sites), tmp_path / "run")
    before = (tmp_path / "run" / MODEL).read_bytes()
    with pytest.raises(CheckpointError, match="must be of study"):
        run_study(clinical_study({"seed": 2}), LocalGrid(sites), tmp_path / "run")
    assert (tmp_path / "run" / MODEL).read_bytes() == before


def test_pretraining_that_is_handed_in_is_not_repeated(tmp_path: Path, with_scans: list[Path]) -> None:
    study = image_study({"finetune.rounds": 1})
    whole = run_study(study, LocalGrid(with_scans), tmp_path / "whole")
    pretrained, _ = load_arrays(tmp_path / "whole" / PRETRAINED)
    taken = run_study(study, LocalGrid(with_scans), tmp_path / "taken", pretrained=pretrained)
    assert [record.stage for record in taken.records] == ["survey", "finetune", "evaluate"]
    assert_same_bits(taken.weights, whole.weights)


def test_judges_score_but_do_not_train(tmp_path: Path, sites: list[Path]) -> None:
    study = clinical_study({"finetune.select": "last"})
    alone = run_study(study, LocalGrid(sites[:1]), tmp_path / "alone")
    judged = run_study(study, LocalGrid(sites[:1]), tmp_path / "judged", judges=LocalGrid(sites))
    assert_same_bits(judged.weights, alone.weights)
    assert sorted(alone.evaluations) == ["site-00"]
    assert sorted(judged.evaluations) == ["site-00", "site-01", "site-02"]


# Faults of sites


def test_site_that_raises_is_named_left_out_and_the_round_goes_on(
    tmp_path: Path, sites: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, train_round = clinical_study(), work.train_round

    def failing(folder: Path, task: Task) -> Any:
        if folder == sites[1] and task.round == 2:
            raise ValueError("/data/patients/Jane_Doe.dcm")
        if folder == sites[2] and task.round == 3:
            raise SiteError("site site-02: disk", "must have room", value="0 bytes", remedy="Free some.")
        return train_round(folder, task)

    monkeypatch.setattr(work, "train_round", failing)
    state = run_study(study, LocalGrid(sites), tmp_path / "run")
    rounds = {record.round: record for record in state.records if record.stage == "finetune"}
    assert rounds[1].sites == ["site-00", "site-01", "site-02"]
    assert rounds[2].sites == ["site-00", "site-02"]
    assert re.fullmatch(r"ValueError, reference [0-9a-f]{8} in the site's log", rounds[2].failed["site-01"])
    assert rounds[3].failed == {"site-02": "site site-02: disk must have room, got '0 bytes'. Free some."}
    written = b"".join(file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert b"Jane_Doe" not in written  # the text of an unforeseen error stays at the site
    assert rounds_of(tmp_path / "run")[2]["failed"] == rounds[2].failed


def test_left_out_site_has_no_part_in_the_average(tmp_path: Path, sites: list[Path]) -> None:
    study = clinical_study({"finetune": {"rounds": 1, "batch_size": 8, "select": "last"}})
    two = run_study(study, LocalGrid(sites[:2]), tmp_path / "two")

    def refuse(site: int, turn: int, reply: Message) -> list[Message]:
        return [refused(reply, "no")] if site == 2 else [reply]

    three = run_study(study, FaultyGrid(sites, refuse), tmp_path / "three")
    assert_same_bits(three.weights, two.weights)


def _rewrite(reply: Message, change: Callable[[np.ndarray], np.ndarray | None]) -> None:
    """Change the first vector among the weights of an update, or take it out."""
    weights = decode_weights(reply.content.array_records[ARRAYS])
    name = next(name for name, array in sorted(weights.items()) if array.ndim == 1)
    changed = change(weights.pop(name))
    if changed is not None:
        weights[name] = changed
    reply.content.array_records[ARRAYS] = encode_weights(weights)


def _not_a_number(reply: Message) -> None:
    _rewrite(reply, lambda array: np.where(np.arange(array.size) == 0, np.float32(np.nan), array))


def _longer(reply: Message) -> None:
    _rewrite(reply, lambda array: np.zeros(99, np.float32))


def _other_dtype(reply: Message) -> None:
    _rewrite(reply, lambda array: array.astype(np.float64))


def _missing(reply: Message) -> None:
    _rewrite(reply, lambda array: None)


def _no_example(reply: Message) -> None:
    reply.content.metric_records[METRICS]["num-examples"] = 0


def _infinite_loss(reply: Message) -> None:
    reply.content.metric_records[METRICS]["loss"] = float("inf")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_not_a_number, "must be finite"),
        (_longer, r"must be float32\[\d+\], got 'float32\[99\]'"),
        (_other_dtype, r"must be float32\[\d+\], got 'float64\[\d+\]'"),
        (_missing, "must name the model's tensors"),
        (_no_example, "num-examples must be a whole number > 0"),
        (_infinite_loss, "reply.loss must be a finite number"),
    ],
)
def test_bad_update_is_left_out_with_its_reason(
    tmp_path: Path, sites: list[Path], change: Callable[[Message], None], reason: str
) -> None:
    def change_update(site: int, turn: int, reply: Message) -> list[Message]:
        if (site, turn) == (1, 2):  # in the first round
            change(reply)
        return [reply]

    study = clinical_study({"finetune.rounds": 2})
    state = run_study(study, FaultyGrid(sites, change_update), tmp_path / "run")
    first, second = (record for record in state.records if record.stage == "finetune")
    assert list(first.failed) == ["site-01"]
    assert re.search(reason, first.failed["site-01"])
    assert second.failed == {}


def test_all_sites_failing_ends_the_study_and_keeps_what_was_done(tmp_path: Path, sites: list[Path]) -> None:
    study = clinical_study()

    def refuse(site: int, turn: int, reply: Message) -> list[Message]:
        return [refused(reply, "the disk is full")] if turn > 2 else [reply]

    with pytest.raises(StudyError, match=r"finetune: sites .* must be >= 1, got 0\..* site-01: the disk is full"):
        run_study(study, FaultyGrid(sites, refuse), tmp_path / "run")
    assert [line["stage"] for line in rounds_of(tmp_path / "run")] == ["survey", "finetune"]
    run_study(study, LocalGrid(sites), tmp_path / "whole")
    run_study(study, LocalGrid(sites), tmp_path / "run")
    assert_same_outcome(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(("minimum", "goes_on"), [(2, True), (3, False)])
def test_minimum_of_sites_is_honoured(tmp_path: Path, sites: list[Path], minimum: int, goes_on: bool) -> None:
    study = clinical_study({"strategy": {"minimum_sites": minimum}})

    def refuse(site: int, turn: int, reply: Message) -> list[Message]:
        return [refused(reply, "no")] if (site, turn) == (1, 2) else [reply]

    if goes_on:
        assert run_study(study, FaultyGrid(sites, refuse), tmp_path / "run").evaluations
    else:
        with pytest.raises(StudyError, match="must be >= 3, got 2"):
            run_study(study, FaultyGrid(sites, refuse), tmp_path / "run")


def test_more_sites_asked_for_than_there_are_is_an_error_not_a_wait(tmp_path: Path, sites: list[Path]) -> None:
    with pytest.raises(StudyError, match="must be >= 4, got 3"):
        run_study(clinical_study({"strategy": {"minimum_sites": 4}}), LocalGrid(sites), tmp_path / "run")


def test_site_that_never_answers_is_named_after_the_timeout(
    tmp_path: Path, sites: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sites_module, "_POLL_S", 0.01)
    study = clinical_study({"finetune.rounds": 1, "strategy": {"round_timeout_s": 1.5}})

    def silent(site: int, turn: int, reply: Message) -> list[Message]:
        return [] if (site, turn) == (1, 2) else [reply]

    started = time.monotonic()
    state = run_study(study, FaultyGrid(sites, silent), tmp_path / "run")
    assert 1.5 <= time.monotonic() - started < 8
    (record,) = (record for record in state.records if record.stage == "finetune")
    assert record.sites == ["site-00", "site-02"]
    assert record.failed == {"site-01": "site-01 must answer within 1.5 s (strategy.round_timeout_s)"}


def test_second_site_of_one_name_is_left_out(tmp_path: Path, sites: list[Path]) -> None:
    twin = clinical_site(tmp_path / "elsewhere", "site-00", first=9000)
    state = run_study(clinical_study(), LocalGrid([*sites, twin]), tmp_path / "run")
    assert state.records[0].failed == {"site-00": "site site-00 must be the name of one site only"}
    assert all(record.sites == ["site-00", "site-01", "site-02"] for record in state.records)
    assert state.surveys["site-00"].patients == 40


def test_replayed_reply_counts_once(tmp_path: Path, sites: list[Path]) -> None:
    study = clinical_study()
    whole = run_study(study, LocalGrid(sites), tmp_path / "whole")
    earlier: list[Message] = []

    def replay(site: int, turn: int, reply: Message) -> list[Message]:
        earlier.append(reply)
        return [*earlier, reply]

    state = run_study(study, FaultyGrid(sites, replay), tmp_path / "run")
    assert_same_bits(state.weights, whole.weights)
    assert all(not record.failed and len(record.sites) == 3 for record in state.records)


def test_order_of_answers_does_not_matter(tmp_path: Path, sites: list[Path]) -> None:
    class Backwards(LocalGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            return super().pull_messages(reversed(list(message_ids)))

    study = clinical_study({"strategy": {"name": "fedavgm", "arguments": {"server_momentum": 0.5}}})
    run_study(study, LocalGrid(sites), tmp_path / "forwards")
    run_study(study, Backwards(sites), tmp_path / "backwards")
    assert_same_outcome(tmp_path / "forwards", tmp_path / "backwards")


def test_reply_without_a_name_is_named_by_its_node(tmp_path: Path, sites: list[Path]) -> None:
    def anonymous(site: int, turn: int, reply: Message) -> list[Message]:
        if (site, turn) == (1, 1):
            reply.content[CONFIG] = ConfigRecord({})
        return [reply]

    state = run_study(clinical_study(), FaultyGrid(sites, anonymous), tmp_path / "run")
    assert list(state.records[0].failed) == ["node 3"]
    assert sorted(state.surveys) == ["site-00", "site-02"]
