"""Does a study on sums alone end as the plain one, whoever vanishes, and does the coordinator see nothing else?"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from client import work
from server.answers import Answers
from server.secure_answers import ALL_SITES, SummedAnswers
from server.sites import Collected, Sites, StudyError
from server.study import run_study
from shared.config import SEE_SINGLE_UPDATES, Study
from shared.errors import ConfigError
from shared.messages import ARRAYS, CONFIG, SurveyReply, Task, Update, encode_weights, task_content
from shared.secure_aggregation import keys
from shared.secure_aggregation.quantisation import to_sums, to_words
from shared.secure_aggregation.steps import Opened
from shared.statistics import Survey
from shared.weights import Weights
from simulation.grid import LocalGrid
from tests.factories import make_study
from tests.server.federations import (
    CutError,
    FaultyGrid,
    assert_same_outcome,
    clinical_sites,
    clinical_study,
    cut_after,
    image_sites,
    refused,
    rounds_of,
)
from tests.sums import COUNTS, REALS, SECAGG, named_sites, summed_study, total_of

ADVERTISE, SHARE, MASK, UNMASK = 1, 2, 3, 4  # a site's first replies


def surveyed(grid: LocalGrid, study: Study) -> Collected[SurveyReply]:
    """The survey of the sites behind a grid, as one sum."""
    sites, content = Sites(grid, study.strategy, {}), task_content(Task(study, "survey", 0, 0, "", None, {}))
    answers: Answers = SummedAnswers(study, Path())
    return answers.surveys(sites, lambda node: Message(content, node, MessageType.QUERY))


def vanishing(gone: Iterable[int], since: int, silent: bool = False) -> Any:
    """What a grid does to replies when some sites are gone since one of their replies."""

    def change(site: int, turn: int, reply: Message) -> list[Message]:
        if site in gone and turn >= since:
            return [] if silent else [refused(reply, "gone")]
        return [reply]

    return change


def names(places: Iterable[int]) -> list[str]:
    return [f"site-{place:02d}" for place in places]


def assert_is_sum(survey: Survey, parts: Sequence[str]) -> None:
    expected = total_of(parts)
    assert survey == replace(expected, sums=survey.sums, squares=survey.squares)
    assert survey.sums == pytest.approx(expected.sums, abs=1e-6 * len(parts))
    assert survey.squares == pytest.approx(expected.squares, abs=1e-6 * len(parts))


# Who vanishes


@pytest.mark.parametrize("since", [SHARE, MASK, UNMASK])
@pytest.mark.parametrize("count", [4, 6])
def test_any_third_may_vanish_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, since: int
) -> None:
    folders = named_sites(tmp_path, count, monkeypatch)
    subsets = [s for size in range(count // 3 + 1) for s in itertools.combinations(range(count), size)]
    for gone in subsets if count < 6 else subsets[-15 :: 1 if since == MASK else 4]:
        found = surveyed(FaultyGrid(folders, vanishing(gone, since)), summed_study())
        there = [place for place in range(count) if since == UNMASK or place not in gone]
        assert found.sites == names(there)
        assert list(found.answers) == [ALL_SITES]
        assert set(found.failed) == ({*names(gone)} if since != UNMASK else set())
        assert_is_sum(found.answers[ALL_SITES].survey, names(there))


def test_sites_that_are_silent_are_waited_for_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = named_sites(tmp_path, 4, monkeypatch)
    study = summed_study({"strategy": {"norm_limit": 0.0, "round_timeout_s": 0.5}})
    found = surveyed(FaultyGrid(folders, vanishing([2], MASK, silent=True)), study)
    assert found.silent == {"site-02"}
    assert_is_sum(found.answers[ALL_SITES].survey, names([0, 1, 3]))


def test_sum_begins_anew_without_those_that_say_why_they_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a third: they would fail each time, and need not end the study."""
    folders = named_sites(tmp_path, 6, monkeypatch)
    found = surveyed(FaultyGrid(folders, vanishing([0, 2, 5], MASK)), summed_study())
    assert found.sites == names([1, 3, 4])
    assert found.failed == dict.fromkeys(names([0, 2, 5]), "gone")
    assert_is_sum(found.answers[ALL_SITES].survey, names([1, 3, 4]))


@pytest.mark.parametrize(
    ("since", "reason"),
    [
        (ADVERTISE, r"survey: sites that took part must be >= 1, got 0\..* sites of the sum must be >= 3 .*, got 2"),
        (SHARE, r"all sites: sites of the sum must be >= 3 to be unmasked \(.*dropouts, fewest\), got 2"),
        (MASK, r"all sites: sites of the sum must be >= 3 to be unmasked .*, got 2"),
        (UNMASK, r"all sites: shares of site-00 must be >= 3, got 2"),
    ],
)
def test_too_few_sites_end_the_study_with_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: int, reason: str
) -> None:
    folders = named_sites(tmp_path / "sites", 4, monkeypatch)
    with pytest.raises(StudyError, match=reason):
        run_study(summed_study(), FaultyGrid(folders, vanishing([1, 3], since)), tmp_path / "run")


# What was changed on the way


def test_wrong_share_ends_the_sum_and_gives_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = named_sites(tmp_path, 4, monkeypatch)

    def change(site: int, turn: int, reply: Message) -> list[Message]:
        if (site, turn) == (0, UNMASK):
            opened = json.loads(reply.content.config_records[CONFIG]["reply"])
            opened["self_shares"]["site-01"] = "00" * 16
            reply.content.config_records[CONFIG]["reply"] = json.dumps(opened)
        return [reply]

    with pytest.raises(StudyError, match="all sites: shares of site-01 must give the secret that it advertised"):
        surveyed(FaultyGrid(folders, change), summed_study())


def _short(reply: Message) -> None:
    reply.content.array_records[ARRAYS] = encode_weights({"sums": np.zeros(COUNTS + REALS - 1, np.uint64)})


def _other_type(reply: Message) -> None:
    reply.content.array_records[ARRAYS] = encode_weights({"sums": np.zeros(COUNTS + REALS, np.float64)})


def _with_words(reply: Message) -> None:
    arrays = {"sums": np.zeros(COUNTS + REALS, np.uint64), "0": np.zeros(3, np.uint32)}
    reply.content.array_records[ARRAYS] = encode_weights(arrays)


def _of_another(reply: Message) -> None:
    reply.content.config_records[CONFIG]["site"] = "site-00"


def _without_arrays(reply: Message) -> None:
    del reply.content.array_records[ARRAYS]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_short, "masked vector: sums must be 15 numbers of uint64, got 14"),
        (_other_type, "masked vector: sums must be 15 numbers of uint64"),
        (_with_words, "masked vector: words must be 0 numbers of uint32, got 3"),
        (_of_another, "masked vector must be of the site that was asked, once, got 'site-00'"),
        (_without_arrays, "masked vector must have a record arrays"),
    ],
)
def test_wrong_vector_is_left_out_and_the_sum_of_the_others_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, reason: str
) -> None:
    folders = named_sites(tmp_path, 4, monkeypatch)

    def changed(site: int, turn: int, reply: Message) -> list[Message]:
        if (site, turn) == (2, MASK):
            change(reply)
        return [reply]

    found = surveyed(FaultyGrid(folders, changed), summed_study())
    assert list(found.failed) == ["site-02"]
    assert reason in found.failed["site-02"]
    assert_is_sum(found.answers[ALL_SITES].survey, names([0, 1, 3]))


# Whole studies


@pytest.fixture(scope="module")
def clinical(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return clinical_sites(tmp_path_factory.mktemp("clinical"), 4)


@pytest.mark.parametrize(
    "strategy",
    [{}, {"name": "fedavgm", "arguments": {"server_momentum": 0.9}}],
)
def test_study_on_sums_ends_as_the_plain_one(tmp_path: Path, clinical: list[Path], strategy: dict[str, Any]) -> None:
    changes = {"finetune.rounds": 2, "strategy": {**SECAGG["strategy"], **strategy}}
    plain = run_study(clinical_study(changes), LocalGrid(clinical), tmp_path / "plain")
    found = run_study(summed_study(changes), LocalGrid(clinical), tmp_path / "sums")
    assert_same_up_to_quantisation(plain.weights, found.weights)
    (scores,) = found.evaluations.values()
    assert scores.cases == sum(one.cases for one in plain.evaluations.values())
    for a, b in zip(plain.records, found.records, strict=True):
        assert (a.stage, a.round, a.sites, a.failed) == (b.stage, b.round, b.sites, b.failed)
        assert a.loss == pytest.approx(b.loss, abs=1e-6)
        assert a.tuning_loss == pytest.approx(b.tuning_loss, abs=1e-6)
    assert list(found.surveys) == list(found.evaluations) == [ALL_SITES]


def assert_same_up_to_quantisation(plain: Weights, found: Weights) -> None:
    assert plain.keys() == found.keys()
    for name in plain:
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-5, atol=1e-6)


def test_pretraining_on_sums_ends_as_the_plain_one(tmp_path: Path) -> None:
    changes = {
        "objective": {"kind": "mae", "decoder_width": 8, "patch": 8},
        "pretrain": {"rounds": 1, "batch_size": 8, "lr": 1e-4},
        "finetune": {"rounds": 0},
    }
    sites = image_sites(tmp_path / "sites", count=3, patients=8)
    plain = run_study(
        make_study(deepcopy({**changes, "strategy": SECAGG["strategy"]})), LocalGrid(sites), tmp_path / "a"
    )
    found = run_study(make_study(deepcopy({**changes, **SECAGG})), LocalGrid(sites), tmp_path / "b")
    assert_same_up_to_quantisation(plain.weights, found.weights)


def test_cut_study_on_sums_ends_as_the_uninterrupted(tmp_path: Path, clinical: list[Path]) -> None:
    """After each phase, and in the middle of each: new masks, the same sums, bit for bit."""
    study = summed_study({"finetune.rounds": 1, "strategy": {**SECAGG["strategy"], "name": "fedadam"}})
    run_study(study, LocalGrid(clinical), tmp_path / "whole")
    phases = len(rounds_of(tmp_path / "whole"))
    for _ in range(phases):
        with pytest.raises(CutError):
            run_study(study, LocalGrid(clinical), tmp_path / "cut", cut_after(1))
    run_study(study, LocalGrid(clinical), tmp_path / "cut")
    assert_same_outcome(tmp_path / "whole", tmp_path / "cut")
    for turn in (2 * UNMASK, 3 * UNMASK + MASK):

        def die(site: int, at: int, reply: Message, turn: int = turn) -> list[Message]:
            if (site, at) == (1, turn):
                raise CutError
            return [reply]

        with pytest.raises(CutError):
            run_study(study, FaultyGrid(clinical, die), tmp_path / f"cut-{turn}")
        run_study(study, LocalGrid(clinical), tmp_path / f"cut-{turn}")
        assert_same_outcome(tmp_path / "whole", tmp_path / f"cut-{turn}")


def test_change_beyond_the_bound_leaves_its_site_out_by_name(
    tmp_path: Path, clinical: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, train_round = summed_study({"finetune.rounds": 1, "finetune.select": "last"}), work.train_round

    def diverging(folder: Path, task: Task) -> Update:
        update = train_round(folder, task)
        if folder == clinical[1]:
            name = min(update.weights)
            update.weights[name] = update.weights[name] + 17
        return update

    monkeypatch.setattr(work, "train_round", diverging)
    state = run_study(study, LocalGrid(clinical), tmp_path / "run")
    record = state.records[1]
    assert record.sites == names([0, 2, 3])
    assert "must change by at most 16 in a round" in record.failed["site-01"]


def test_claims_of_more_examples_than_there_are_are_refused_by_the_site(
    tmp_path: Path, clinical: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_round = work.train_round

    def boasting(folder: Path, task: Task) -> Update:
        return replace(train_round(folder, task), examples=10**6 if folder == clinical[1] else 8)

    monkeypatch.setattr(work, "train_round", boasting)
    state = run_study(summed_study({"finetune.rounds": 1}), LocalGrid(clinical), tmp_path / "run")
    assert "training examples must be <= " in state.records[1].failed["site-01"]


def test_sum_of_more_examples_than_the_survey_is_not_believed(
    tmp_path: Path, clinical: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that grew since: the words may have gone around."""
    train_round = work.train_round
    monkeypatch.setattr(work, "train_round", lambda folder, task: replace(train_round(folder, task), examples=60))
    with pytest.raises(StudyError, match=r"all sites: update: examples must be <= \d+, as the site stated"):
        run_study(summed_study({"finetune.rounds": 1}), LocalGrid(clinical), tmp_path / "run")


# What the coordinator sees


class SeenGrid(LocalGrid):
    """A grid that keeps every reply."""

    def __init__(self, sites: Sequence[Path]) -> None:
        super().__init__(sites)
        self.replies: list[Message] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        self.replies += deepcopy(replies)
        return replies


@dataclass
class Known:
    """What a test knows of a study that the coordinator must not: secrets, and parts of sums in the clear."""

    secrets: list[bytes]
    parts: list[bytes]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Known:
    from client import secure_aggregation

    seen = Known([], [])
    new_seed = keys.new_seed

    def seed() -> bytes:
        seen.secrets.append(new_seed())
        return seen.secrets[-1]

    def words(*arguments: Any) -> Any:
        found = to_words(*arguments)
        seen.parts.append(found.tobytes())
        seen.parts.extend(array.tobytes() for array in arguments[0].values() if array.size > 3)
        return found

    def sums(*arguments: Any) -> Any:
        found = to_sums(*arguments)
        seen.parts.append(found.tobytes())
        return found

    monkeypatch.setattr(keys, "new_seed", seed)
    monkeypatch.setattr(secure_aggregation, "to_words", words)
    monkeypatch.setattr(secure_aggregation, "to_sums", sums)
    return seen


def contents(reply: Message) -> Iterator[bytes]:
    """Every byte of a reply, as it is sent."""
    for part in get_all_nested_objects(reply).values():
        yield part.deflate()


def test_coordinator_sees_masked_vectors_keys_and_shares_and_nothing_else(
    tmp_path: Path, clinical: list[Path], known: Known
) -> None:
    study = summed_study({"finetune.rounds": 1})
    runs = []
    for name in ("one", "two"):
        grid = SeenGrid(clinical)
        run_study(study, grid, tmp_path / name)
        runs.append(grid.replies)
    assert_same_outcome(tmp_path / "one", tmp_path / "two")  # whatever the masks
    everything = b"".join(part for replies in runs for reply in replies for part in contents(reply))
    assert len(known.secrets) == 2 * 3 * 4 * 4  # runs, seeds, sums, sites
    for secret in [*known.secrets, *known.parts]:
        assert secret not in everything
        assert secret.hex().encode() not in everything
    vectors = []
    for replies in runs:
        kinds = Counter(_inspected(reply) for reply in replies)
        assert kinds == dict.fromkeys(("advert", "sealed", "masked", "opened"), 4 * 4)  # sums, sites
        vectors += [_vector(reply) for reply in replies if ARRAYS in reply.content]
    assert len(set(vectors)) == len(vectors)
    _assert_uniform(b"".join(vectors))


def _inspected(reply: Message) -> str:
    """Which of the four answers it is; there is nothing in it that its kind does not have."""
    content = reply.content
    if ARRAYS in content:
        assert set(content) == {ARRAYS, CONFIG}
        assert set(content.config_records[CONFIG]) == {"site"}
        return "masked"
    assert set(content) == {CONFIG}
    config = content.config_records[CONFIG]
    assert isinstance(config, ConfigRecord)
    assert set(config) == {"reply"}
    data = json.loads(str(config["reply"]))
    site = data.pop("site")
    if "mask_key" in data:
        assert {n: len(v) for n, v in data.items() if v} == {"mask_key": 64, "sealing_key": 64, "commitment": 64}
        return "advert"
    others = set(names(range(4))) - {site}
    if set(data) == {"shares"}:
        assert {n: len(v) for n, v in data["shares"].items()} == dict.fromkeys(others, 2 * (12 + 32 + 16))
        return "sealed"
    assert set(data) == {"self_shares", "mask_shares"}
    assert not set(data["self_shares"]) & set(data["mask_shares"])
    assert {n: len(v) for n, v in data["self_shares"].items()} == dict.fromkeys(names(range(4)), 32)
    return "opened"


def _vector(reply: Message) -> bytes:
    weights: dict[str, np.ndarray] = {}
    from safetensors.numpy import load

    for piece in reply.content.array_records[ARRAYS].values():
        weights |= load(piece.data)
    return b"".join(array.tobytes() for _, array in sorted(weights.items()))


def _assert_uniform(data: bytes) -> None:
    """Bits and bytes as often as chance has it, within five deviations."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    assert len(data) > 100_000
    statistic = float(((counts - len(data) / 256) ** 2 / (len(data) / 256)).sum())
    assert abs(statistic - 255) < 5 * np.sqrt(2 * 255)


def test_both_secrets_of_a_site_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = named_sites(tmp_path, 6, monkeypatch)
    grid = FaultyGrid(folders, vanishing([1, 4], MASK))
    opened: list[Opened] = []
    from client import secure_aggregation

    unmask = secure_aggregation._unmask

    def kept(*arguments: Any) -> Opened:
        opened.append(unmask(*arguments))
        return opened[-1]

    monkeypatch.setattr(secure_aggregation, "_unmask", kept)
    surveyed(grid, summed_study())
    assert len(opened) == 4
    for one in opened:
        assert sorted(one.self_shares) == names([0, 2, 3, 5])
        assert sorted(one.mask_shares) == names([1, 4])


# What is refused


@pytest.mark.parametrize("strategy", SEE_SINGLE_UPDATES)
def test_strategy_that_must_see_single_updates_is_refused(strategy: str) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.name must work on the mean of the updates"):
        summed_study({"strategy": {"name": strategy, "norm_limit": 0.0}})


def test_limit_on_the_size_of_single_updates_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.norm_limit must be 0 with secure aggregation"):
        summed_study({"strategy": {}})
