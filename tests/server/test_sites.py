"""Is nobody waited for without end, is everybody asked who should be, and is the reason told?"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message

from server import sites as sites_module
from server.sites import StudyError, benched_sites, wait_of_round
from server.state import RoundRecord, State
from server.study import run_study
from shared.config import Strategy
from shared.messages import AWAITS_APPROVAL, CONFIG
from simulation.grid import LocalGrid
from tests.server.federations import FaultyGrid, clinical_sites, clinical_study, refused

NODES = {2: "site-00", 3: "site-01", 4: "site-02"}  # of three sites in a LocalGrid


@pytest.fixture
def sites(tmp_path: Path) -> list[Path]:
    return clinical_sites(tmp_path / "sites")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_POLL_S", "_LOOK_S", "_ASK_AGAIN_S"):
        monkeypatch.setattr(sites_module, name, 0.01)


class Network(LocalGrid):
    """Sites of which some come late, or never, and whose late answers are refused.

    Args:
        connects: after how many looks a node is connected.
    """

    def __init__(self, sites: Sequence[Path], connects: dict[int, int] | None = None) -> None:
        super().__init__(sites)
        self.connects, self.looks, self.forgotten, self.asked = connects or {}, 0, [], []

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        return [node for node in super().get_node_ids() if self.looks > self.connects.get(node, 0)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.asked += [message.metadata.dst_node_id for message in messages]
        return super().push_messages(messages)

    def forget(self, message_ids: Iterable[str]) -> None:
        self.forgotten += list(message_ids)


def run(folder: Path, grid: LocalGrid, changes: dict[str, Any] | None = None, **more: Any) -> State:
    study = clinical_study({"finetune.rounds": 1, **(changes or {})})
    return run_study(study, grid, folder / "run", enrolled=lambda: NODES, **more)


NEVER = 10**9


# The start


def test_study_waits_for_an_enrolled_site_and_says_so(tmp_path: Path, sites: list[Path]) -> None:
    notices: list[str] = []
    state = run(tmp_path, Network(sites, {3: 20}), notice=notices.append)
    assert state.records[0].sites == ["site-00", "site-01", "site-02"]
    assert notices == ["waiting for site-01 to connect", ""]


def test_study_begins_without_a_site_that_does_not_come_in_time(tmp_path: Path, sites: list[Path]) -> None:
    state = run(tmp_path, Network(sites, {3: NEVER}), {"strategy.gathering_timeout_s": 0.5})
    assert state.records[0].sites == ["site-00", "site-02"]
    assert state.records[0].failed == {"site-01": "not connected when the study began"}
    assert all(record.sites == ["site-00", "site-02"] for record in state.records)


def test_study_does_not_begin_with_fewer_sites_than_it_asks_for(tmp_path: Path, sites: list[Path]) -> None:
    changes = {"strategy.gathering_timeout_s": 0.3, "strategy.start_sites": 3}
    with pytest.raises(StudyError, match=r"must be >= 3, got 2\. site-01: not connected"):
        run(tmp_path, Network(sites, {3: NEVER}), changes)


def test_site_that_has_yet_to_approve_is_asked_again(tmp_path: Path, sites: list[Path]) -> None:
    asked, notices = [], []

    def undecided(site: int, turn: int, reply: Message) -> list[Message]:
        if site != 1 or turn > 3:
            return [reply]
        asked.append(turn)
        answer = refused(reply, "must be approved by the site")
        answer.error = Error(AWAITS_APPROVAL, "must be approved by the site")
        return [answer]

    state = run(tmp_path, FaultyGrid(sites, undecided), notice=notices.append)
    assert asked == [1, 2, 3]
    assert state.records[0].sites == ["site-00", "site-01", "site-02"]
    assert notices == ["waiting for site-01 to approve the study", ""]


def test_site_that_was_asked_again_when_time_ran_out_is_left_out_for_what_it_said(
    tmp_path: Path, sites: list[Path]
) -> None:
    def undecided(site: int, turn: int, reply: Message) -> list[Message]:
        if site != 1:
            return [reply]
        answer = refused(reply, "must be approved by the site")
        answer.error = Error(AWAITS_APPROVAL, "must be approved by the site")
        return [answer] if turn == 1 else []

    state = run(tmp_path, FaultyGrid(sites, undecided), {"strategy.gathering_timeout_s": 1.0})
    assert state.records[0].failed == {"site-01": "must be approved by the site"}


def test_site_that_refuses_is_not_asked_again(tmp_path: Path, sites: list[Path]) -> None:
    turns = []

    def refuse(site: int, turn: int, reply: Message) -> list[Message]:
        if site == 1:
            turns.append(turn)
            return [refused(reply, "must be approved by the site, got 'refused'")]
        return [reply]

    state = run(tmp_path, FaultyGrid(sites, refuse))
    assert turns == [1]
    assert state.records[0].failed == {"site-01": "must be approved by the site, got 'refused'"}


def test_site_cannot_speak_for_another(tmp_path: Path, sites: list[Path]) -> None:
    def pretend(site: int, turn: int, reply: Message) -> list[Message]:
        if site == 1:
            reply.content.config_records[CONFIG]["site"] = "site-02"
        return [reply]

    state = run(tmp_path, FaultyGrid(sites, pretend))
    reason = "site must be site-01, to whom the key belongs, got 'site-02'"
    assert [record.failed for record in state.records] == [{"site-01": reason}, {}, {}]


# The rounds


def silent_once(at: int) -> Callable[[int, int, Message], list[Message]]:
    """All sites' answers of one turn are lost."""
    return lambda site, turn, reply: [] if turn == at else [reply]


def test_round_that_nobody_answered_is_tried_again(tmp_path: Path, sites: list[Path]) -> None:
    changes = {"strategy.round_timeout_s": 0.5, "strategy.attempts": 2}
    state = run(tmp_path, FaultyGrid(sites, silent_once(2)), changes)
    assert [(record.stage, record.sites) for record in state.records] == [
        (stage, ["site-00", "site-01", "site-02"]) for stage in ("survey", "finetune", "evaluate")
    ]


def test_attempts_are_bounded(tmp_path: Path, sites: list[Path]) -> None:
    changes = {"strategy.round_timeout_s": 0.3, "strategy.attempts": 2}
    started = time.monotonic()
    with pytest.raises(StudyError, match=r"finetune: sites that took part must be >= 1, got 0\. site-00: site-00 must"):
        run(tmp_path, FaultyGrid(sites, lambda site, turn, reply: [reply] if turn == 1 else []), changes)
    assert time.monotonic() - started < 15


def test_reasons_that_time_does_not_mend_end_the_round_at_once(tmp_path: Path, sites: list[Path]) -> None:
    turns = []

    def full(site: int, turn: int, reply: Message) -> list[Message]:
        turns.append(turn)
        return [reply] if turn == 1 else [refused(reply, "the disk is full")]

    with pytest.raises(StudyError, match="the disk is full"):
        run(tmp_path, FaultyGrid(sites, full), {"strategy.attempts": 3})
    assert max(turns) == 2


def test_late_answers_are_given_up(tmp_path: Path, sites: list[Path]) -> None:
    class Slow(Network):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return [r for r in super().pull_messages(message_ids) if r.metadata.src_node_id != 3 or len(self.asked) < 4]

    grid = Slow(sites)
    state = run(tmp_path, grid, {"strategy.round_timeout_s": 0.4})
    assert list(state.records[1].failed) == ["site-01"]
    assert len(grid.forgotten) == 3  # of the round, and of both evaluations


def test_site_whose_leave_is_taken_during_a_round_is_not_waited_for(tmp_path: Path, sites: list[Path]) -> None:
    enrolled = dict(NODES)

    def revoke(site: int, turn: int, reply: Message) -> list[Message]:
        if site == 1 and turn == 2:
            del enrolled[3]
            return []
        return [reply]

    study = clinical_study({"finetune.rounds": 1, "strategy.round_timeout_s": 60.0})
    started = time.monotonic()
    state = run_study(study, FaultyGrid(sites, revoke), tmp_path / "run", enrolled=lambda: dict(enrolled))
    assert time.monotonic() - started < 30
    assert state.records[1].failed == {"site-01": "no longer enrolled"}


def test_who_is_left_out_is_logged_at_once_with_the_reason(
    tmp_path: Path, sites: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(site: int, turn: int, reply: Message) -> list[Message]:
        return [error_and_note(reply)] if (site, turn) == (0, 2) else [reply]

    def error_and_note(reply: Message) -> Message:
        return refused(reply, "a\nlong\x00 reason " + "x" * 1000)

    with caplog.at_level(logging.WARNING, "server.sites"):
        run(tmp_path, FaultyGrid(sites, fail))
    (line,) = caplog.messages
    assert line.startswith("finetune: site-00 left out: a long reason xxx")
    assert len(line) < 400


# Patience


def record(stage: str, sites: str, failed: str = "", seconds: float = 1.0) -> RoundRecord:
    return RoundRecord(stage, 1, 1, sites=list(sites), failed=dict.fromkeys(failed, "why"), seconds=seconds)


def test_wait_is_learned_from_the_stages_whole_rounds() -> None:
    strategy = Strategy(patience=3.0, round_timeout_s=900.0)
    assert wait_of_round([], "finetune", strategy) == 900.0
    assert wait_of_round([record("pretrain", "ab", seconds=100.0)], "finetune", strategy) == 900.0
    whole = [record("finetune", "ab", seconds=s) for s in (50.0, 60.0, 200.0)]
    cut = record("finetune", "a", "b", seconds=900.0)
    assert wait_of_round([*whole, cut], "finetune", strategy) == 180.0
    assert wait_of_round([record("finetune", "ab", seconds=0.1)], "finetune", strategy) == 30.0
    assert wait_of_round([record("finetune", "ab", seconds=800.0)], "finetune", strategy) == 900.0
    assert wait_of_round(whole, "finetune", Strategy(round_timeout_s=900.0)) == 900.0


def test_site_is_benched_after_failing_in_a_row_and_asked_again_later() -> None:
    strategy = Strategy(bench_after=2, bench_rounds=3)
    records: list[RoundRecord] = []
    benched = []
    for _ in range(12):
        out = benched_sites(records, strategy)
        benched.append("b" in out)
        records.append(record("finetune", "a", "" if out else "b"))
    assert benched == [False, False, True, True, True, False, False, True, True, True, False, False]


def test_success_between_failures_keeps_a_site_in() -> None:
    records = [record("finetune", "a", "b"), record("finetune", "ab"), record("finetune", "a", "b")]
    assert benched_sites(records, Strategy(bench_after=2)) == set()
    assert benched_sites([*records, record("finetune", "a", "b")], Strategy(bench_after=2)) == {"b"}
    assert benched_sites([record("finetune", "a", "b")] * 9, Strategy(bench_after=0)) == set()


def test_benched_site_is_spared_in_a_study(tmp_path: Path, sites: list[Path]) -> None:
    def fail(site: int, turn: int, reply: Message) -> list[Message]:
        return [refused(reply, "out of order")] if site == 1 and 2 <= turn <= 3 else [reply]

    changes = {"finetune.rounds": 6, "strategy": {"bench_after": 2, "bench_rounds": 2}}
    state = run(tmp_path, FaultyGrid(sites, fail), changes)
    rounds = [record for record in state.records if record.stage == "finetune"]
    assert ["site-01" in record.sites for record in rounds] == [False, False, False, False, True, True]
    assert ["site-01" in record.failed for record in rounds] == [True, True, False, False, False, False]
