"""Does nothing leave a site but what is on the list, each by a row that nobody can change unseen?"""

from __future__ import annotations

import inspect
import json
import logging
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from client import connection as connection_module
from client import egress, node
from client.approvals import APPROVED, decide
from client.cli import site as site_commands
from client.connection import Connection
from client.departures import audit
from client.egress import (
    EGRESS,
    LONGEST_REASON,
    WITHHELD_REASON,
    Departure,
    Egress,
    hash_of,
    open_egress,
    vouch,
)
from client.ledger import LEDGER, accounted
from client.membership import make_keys, own_key
from client.parcels import INBOX, OUTBOX, Parcel
from shared.errors import MessageError, SiteError
from shared.keys import new_key
from shared.messages import (
    ARRAYS,
    CONFIG,
    METRICS,
    Evaluation,
    SurveyReply,
    Task,
    Update,
    encode_weights,
    error_reply,
    evaluation_content,
    survey_content,
    task_content,
    update_content,
)
from shared.metrics import empty_scores
from shared.statistics import Statistics, Survey
from shared.weights import Weights
from simulation.grid import LocalGrid
from tests.client.kills import STEP, folder_in_memory, in_a_process
from tests.client.plans import StagePlan, follow
from tests.factories import make_study, small_site
from tests.memberships import keyed_site

STUDY = make_study({"modalities": ["clinical"], "pretrain.rounds": 0, "finetune.rounds": 9})
STATISTICS = Statistics((70.0, 106.0), (5.0, 4.0), 0.5)
WEIGHTS: Weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
TRAIN = Task(STUDY, "finetune", 3, 9, "", STATISTICS, WEIGHTS)
TASKS = {
    "query": Task(STUDY, "survey", 0, 0, "", None, {}),
    "train": TRAIN,
    "evaluate": Task(STUDY, "evaluate", 0, 0, "held_out", STATISTICS, WEIGHTS),
}
UPDATE = Update("north", "finetune", 3, {name: -array for name, array in WEIGHTS.items()}, 7, 0.5, empty_scores(), 1.5)
REPLIES = {
    "query": survey_content(SurveyReply("north", Survey(12, counts=(1, 2), sums=(0.5, 1.0), squares=(1.0, 1.0)))),
    "train": update_content(UPDATE),
    "evaluate": evaluation_content(Evaluation("north", empty_scores(), 0.5)),
}


@pytest.fixture
def north(tmp_path: Path) -> Path:
    path = small_site(modalities=(), patients=4).write(tmp_path / "north").path
    make_keys(path)
    return path


@pytest.fixture
def quick_north() -> Iterator[Path]:
    with folder_in_memory() as folder:
        yield keyed_site(folder / "north")[0].path


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "client"):
        yield


class Coordinator:
    """The other end, which keeps what came on the disk."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "pushed"

    def confirm(self, inbox: Parcel) -> None:
        pass

    def push(self, outbox: Parcel) -> None:
        with self.file.open("a") as stream:
            stream.write(f"{outbox.message_id}\n")
        for part in outbox.folder.iterdir():
            if len(part.name) == 64:
                outbox.read(part.name)

    @property
    def pushed(self) -> list[str]:
        return self.file.read_text().split() if self.file.exists() else []


def asked(folder: Path, kind: str = "train") -> Message:
    """A task in the inbox, as the worker reads it."""
    (destination,) = LocalGrid([folder]).get_node_ids()
    inbox = Parcel(folder / INBOX)
    inbox.store(Message(task_content(TASKS[kind]), destination, kind))
    return inbox.header()


def answered(folder: Path, content: RecordDict, kind: str = "train") -> None:
    Parcel(folder / OUTBOX).store(Message(content, reply_to=asked(folder, kind)))


def send(folder: Path) -> None:
    """What the node does with a reply in the outbox."""
    guard = Egress(folder, own_key(folder), "north")
    node._send(Coordinator(folder), Parcel(folder / INBOX), Parcel(folder / OUTBOX), guard)  # type: ignore[arg-type]


def departures(folder: Path) -> list[dict[str, Any]]:
    found = audit(folder)
    assert found["whole"], found["faults"]
    begun, *rows = found["departures"]
    assert begun["kind"] == "begun"
    return rows


def what_left(folder: Path) -> Message:
    """The message that the node would send."""
    outbox = Parcel(folder / OUTBOX)
    Egress(folder, own_key(folder), "north").let_go(Parcel(folder / INBOX), outbox)
    assert departures(folder)[-1]["sha256"] == outbox.message_id
    assert departures(folder)[-1]["bytes"] == outbox.size_bytes
    return outbox.load()


# What may leave


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_what_a_task_asks_for_leaves_as_it_is_and_is_recorded(north: Path, kind: str) -> None:
    decision = decide(north, own_key(north), STUDY, APPROVED)
    answered(north, REPLIES[kind], kind)
    before = Parcel(north / OUTBOX).message_id
    Egress(north, own_key(north), "north")
    with accounted(north, TASKS[kind], float("inf")):
        pass
    assert what_left(north).content == REPLIES[kind]
    (row,) = departures(north)
    assert row["sha256"] == before
    assert row["study"] == "tiny"
    assert row["approval"] == hash_of(decision.content().decode())
    assert (row["stage"], row["round"]) == (TASKS[kind].stage, TASKS[kind].round)
    assert row["kind"] == {"query": "survey", "train": "update", "evaluate": "evaluation"}[kind]


def test_an_error_leaves_and_is_recorded(north: Path) -> None:
    Parcel(north / OUTBOX).store(error_reply(asked(north), "no labels here", 1001))
    assert what_left(north).error == Error(1001, "no labels here")
    assert [row["kind"] for row in departures(north)] == ["error"]


def test_the_answer_to_what_is_no_task_is_an_error(north: Path) -> None:
    (destination,) = LocalGrid([north]).get_node_ids()
    inbox, outbox = Parcel(north / INBOX), Parcel(north / OUTBOX)
    inbox.store(Message(RecordDict({"x": ConfigRecord({})}), destination, "train"))
    outbox.store(error_reply(inbox.header(), "task must have a record config"))
    assert what_left(north).error.reason == "task must have a record config"
    inbox.store(Message(RecordDict({"y": ConfigRecord({})}), destination, "train"))
    outbox.store(Message(update_content(UPDATE), reply_to=inbox.header()))
    assert what_left(north).error.reason == WITHHELD_REASON


# What may not


def changed(change: Callable[[RecordDict], None]) -> RecordDict:
    content = update_content(UPDATE)
    change(content)
    return content


def piece_of(data: bytes) -> ArrayRecord:
    return ArrayRecord({"000000": Array("uint8", (len(data),), "safetensors", data)})


def with_weights(**weights: Any) -> RecordDict:
    return update_content(replace(UPDATE, weights=weights))


A, B = UPDATE.weights["a"], UPDATE.weights["b"]
HIDDEN = safetensors.numpy.save(UPDATE.weights, {"note": "Jane Doe"})
PIECES = encode_weights({"a": A}), encode_weights({"b": B})
ODD: dict[str, RecordDict] = {
    "nothing": RecordDict(),
    "another kind": REPLIES["query"],
    "a record more": changed(lambda c: c.__setitem__("more", ConfigRecord({"who": "Jane Doe"}))),
    "arrays more": changed(lambda c: c.__setitem__("more", encode_weights({"scan": np.zeros(9, np.float32)}))),
    "a field more": changed(lambda c: c.config_records[CONFIG].__setitem__("who", "Jane Doe")),
    "a number more": changed(lambda c: c.metric_records[METRICS].__setitem__("age", 71)),
    "a list more": changed(lambda c: c.metric_records[METRICS].__setitem__("ages", [71, 72])),
    "a record less": changed(lambda c: c.__delitem__(METRICS)),
    "a number not finite": changed(lambda c: c.metric_records[METRICS].__setitem__("loss", float("nan"))),
    "another site": update_content(replace(UPDATE, site="Jane Doe")),
    "another round": update_content(replace(UPDATE, round=4)),
    "another stage": update_content(replace(UPDATE, stage="pretrain")),
    "a tensor more": with_weights(a=A, b=B, scan=A),
    "a tensor less": with_weights(a=A),
    "no tensor": with_weights(),
    "another name": with_weights(a=A, c=B),
    "another shape": with_weights(a=A.T.copy(), b=B),
    "another type": with_weights(a=A.astype(np.float64), b=B),
    "not finite": with_weights(a=A * np.nan, b=B),
    "not tensors": changed(lambda c: c.__setitem__(ARRAYS, piece_of(b"Jane Doe" * 9))),
    "a note in a piece": changed(lambda c: c.__setitem__(ARRAYS, piece_of(HIDDEN))),
    "an end of a piece": changed(
        lambda c: c.__setitem__(ARRAYS, piece_of(safetensors.numpy.save(UPDATE.weights) + b"Jane Doe"))
    ),
    "a named piece": changed(
        lambda c: c.__setitem__(ARRAYS, ArrayRecord({"Jane Doe": encode_weights(UPDATE.weights)["000000"]}))
    ),
    "a piece twice": changed(
        lambda c: c.__setitem__(
            ARRAYS,
            ArrayRecord({"000000": PIECES[0]["000000"], "000001": PIECES[1]["000000"], "000002": PIECES[0]["000000"]}),
        )
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_has_no_place_in_a_message_is_withheld(north: Path, odd: str) -> None:
    answered(north, ODD[odd])
    left = what_left(north)
    assert left.error == Error(1000, WITHHELD_REASON)
    assert left.metadata.reply_to_message_id == Parcel(north / INBOX).message_id
    assert [row["kind"] for row in departures(north)] == ["withheld"]
    assert b"Jane" not in b"".join(file.read_bytes() for file in (north / OUTBOX).iterdir())


@pytest.mark.parametrize(
    "error", [Error(1, "x"), Error(1000, "x" * (LONGEST_REASON + 1)), Error(1000, "two\nlines"), Error(2000, "x")]
)
def test_an_odd_error_is_withheld(north: Path, error: Error) -> None:
    Parcel(north / OUTBOX).store(Message(error, reply_to=asked(north)))
    assert what_left(north).error == Error(1000, WITHHELD_REASON)


def test_a_reply_to_another_message_is_withheld(north: Path) -> None:
    answered(north, REPLIES["train"])
    asked(north, "evaluate")
    assert what_left(north).error.reason == WITHHELD_REASON


def test_parts_beside_the_message_are_withheld(north: Path) -> None:
    answered(north, REPLIES["train"])
    (north / OUTBOX / ("a" * 64)).write_bytes(b"Jane Doe")
    assert what_left(north).error.reason == WITHHELD_REASON
    assert not (north / OUTBOX / ("a" * 64)).exists()


def test_too_many_words_are_withheld(north: Path) -> None:
    answered(
        north, survey_content(SurveyReply("north" * 2**18, Survey(counts=(1, 2), sums=(1, 1), squares=(1, 1)))), "query"
    )
    assert what_left(north).error.reason == WITHHELD_REASON


def test_a_reply_without_its_task_does_not_leave(north: Path) -> None:
    answered(north, REPLIES["train"])
    Parcel(north / INBOX).clear()
    with pytest.raises(MessageError, match="must answer a task that is there"):
        send(north)
    assert Coordinator(north).pushed == []
    assert departures(north) == []


def test_a_large_model_is_looked_at_piece_by_piece(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared import parts

    weights = {f"layer-{i}": np.full(2**20, i, np.float32) for i in range(12)}  # 48 MB in five pieces
    (destination,) = LocalGrid([north]).get_node_ids()
    inbox, outbox = Parcel(north / INBOX), Parcel(north / OUTBOX)
    inbox.store(Message(task_content(replace(TRAIN, weights=weights)), destination, "train"))
    outbox.store(Message(update_content(replace(UPDATE, weights=weights)), reply_to=inbox.header()))
    largest, inflate = 0, parts.inflate_object_from_contents

    def watched(name: str, contents: dict[str, bytes], **named: Any) -> Any:
        nonlocal largest
        largest = max(largest, sum(map(len, contents.values())))
        return inflate(name, contents, **named)

    monkeypatch.setattr(parts, "inflate_object_from_contents", watched)
    Egress(north, own_key(north), "north").let_go(inbox, outbox)
    assert [row["kind"] for row in departures(north)] == ["update"]
    assert largest < 11 * 2**20


# The record


def test_a_message_that_is_sent_again_is_the_same_departure(north: Path) -> None:
    answered(north, REPLIES["train"])
    for _ in range(3):
        inbox, outbox = Parcel(north / INBOX), Parcel(north / OUTBOX)
        guard = Egress(north, own_key(north), "north")
        guard.let_go(inbox, outbox)
    assert len(departures(north)) == 1
    Parcel(north / INBOX).clear()  # it was sent; the outbox was not cleared yet
    guard.let_go(inbox, outbox)
    assert len(departures(north)) == 1


def filled(folder: Path, rows: int = 5) -> None:
    for number in range(rows):
        Parcel(folder / OUTBOX).store(error_reply(asked(folder), f"reason {number}"))
        send(folder)


def test_death_at_every_statement_of_sending(quick_north: Path) -> None:
    """What the coordinator has is in the ledger, once, and the ledger is whole whenever one looks."""
    north = quick_north
    files = tuple(f"client/{name}.py" for name in ("node", "egress", "database"))
    coordinator, at_last = Coordinator(north), 0
    filled(north, 1)
    for weights, step in ((UPDATE.weights, STEP), ({}, 5 * STEP)):  # the second one is withheld
        statement, ended = 0, False
        while not ended:
            answered(north, update_content(replace(UPDATE, weights=weights, loss=float(at_last))))
            ended = in_a_process(partial(send, north), statement, files)
            recorded = [row["sha256"] for row in departures(north)]
            assert set(coordinator.pushed) <= set(recorded)
            if Parcel(north / OUTBOX).is_there:
                assert in_a_process(partial(send, north))
            recorded = [row["sha256"] for row in departures(north)]
            assert set(coordinator.pushed) == set(recorded)
            assert len(recorded) == len(set(recorded)) == at_last + 2
            at_last, statement = at_last + 1, statement + step
    assert at_last * STEP > 60  # statements
    assert {row["kind"] for row in departures(north)} == {"error", "update", "withheld"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site from which five messages left. Read it, do not change it."""
    path = small_site(modalities=(), patients=4).write(tmp_path_factory.mktemp("sites") / "north").path
    make_keys(path)
    filled(path)
    return path


@st.composite
def tampering(draw: st.DrawFn) -> tuple[str, list[str]]:
    """What somebody does to the ledger who does not have the site's key: its name, and SQL."""
    one, other = draw(st.permutations(range(1, 7)))[:2]
    letter, place = draw(st.sampled_from("0123456789abcdefX")), draw(st.integers(1, 400))
    row, all_rows = f"WHERE number = {one}", "UPDATE departures SET"
    with_letter = f"substr(content, 1, {place} - 1) || '{letter}' || substr(content, {place} + 1)"
    choices = {
        "change": f"{all_rows} content = {with_letter} {row}",
        "rename": f"{all_rows} message = '{letter}' || substr(message, 2) {row}",
        "delete": f"DELETE FROM departures {row}",
        "close the gap": f"DELETE FROM departures {row}; {all_rows} number = -number WHERE number > {one}; "
        f"{all_rows} number = -number - 1 WHERE number < 0",
        "cut": f"DELETE FROM departures WHERE number >= {one}",
        "swap": f"{all_rows} number = 99 {row}; {all_rows} number = {one} WHERE number = {other}; "
        f"{all_rows} number = {other} WHERE number = 99",
        "repeat": f"INSERT INTO departures SELECT 7, message, content FROM departures {row}",
        "unsign": "DELETE FROM head",
        "sign": "UPDATE head SET signature = zeroblob(100)",
    }
    name = draw(st.sampled_from(sorted(choices)))
    return name, choices[name].split("; ")


@settings(max_examples=100)
@given(tampering(), st.booleans())
def test_any_tampering_is_found(recorded: Path, tmp_path: Path, done: tuple[str, list[str]], chained: bool) -> None:
    """Also by somebody who makes the hashes right again."""
    folder = tmp_path / "site"
    shutil.copytree(recorded / "state" / "keys", folder / "state" / "keys", dirs_exist_ok=True)
    shutil.copy(recorded / EGRESS, folder / EGRESS)
    with closing(sqlite3.connect(folder / EGRESS)) as connection, connection:
        before = list(connection.execute("SELECT * FROM departures")), list(connection.execute("SELECT * FROM head"))
        for statement in done[1]:
            connection.execute(statement)
        if chained:
            rechain(connection)
        after = list(connection.execute("SELECT * FROM departures")), list(connection.execute("SELECT * FROM head"))
    assume(before != after)
    assert audit(folder)["faults"], done


def rechain(connection: sqlite3.Connection) -> None:
    previous = "0" * 64
    rows = list(connection.execute("SELECT number, content FROM departures ORDER BY number"))
    for place, (number, content) in enumerate(rows, start=1):
        try:
            row = replace(Departure.of(content), number=place, previous=previous)
        except (ValueError, TypeError):
            return
        connection.execute(
            "UPDATE departures SET message = ?, content = ? WHERE number = ?", (row.sha256, row.content(), number)
        )
        previous = hash_of(row.content())


def test_a_ledger_that_another_key_signed_is_found(recorded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    shutil.copytree(recorded, folder)
    with open_egress(folder) as connection:
        (content,) = connection.execute("SELECT content FROM departures WHERE number = 6").fetchone()
        connection.execute("DELETE FROM head")
        vouch(connection, new_key(), 6, hash_of(content))
    assert "did not sign" in audit(folder)["faults"][0]


def test_a_new_key_of_the_site_vouches_for_a_whole_ledger_only(recorded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    shutil.copytree(recorded, folder)
    make_keys(folder, anew=True)
    assert audit(folder)["whole"]
    filled(folder, 1)
    assert len(departures(folder)) == 6
    with open_egress(folder) as connection:
        connection.execute("DELETE FROM departures WHERE number = 7")
    make_keys(folder, anew=True)
    assert audit(folder)["faults"]


def test_a_ledger_that_was_taken_away_is_missed(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert audit(north)["faults"] == []  # nothing was done yet
    filled(north, 1)
    with accounted(north, TRAIN, float("inf")):
        pass
    assert audit(north)["faults"] == []
    (north / EGRESS).unlink()
    assert "is missing, though" in audit(north)["faults"][0]
    monkeypatch.setattr(egress, "_now", lambda: "2999-01-01T00:00:00+00:00")
    filled(north, 1)
    assert "begun after releases were made" in audit(north)["faults"][0]


def test_privacy_that_was_spent_when_messages_left_is_missed(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, StagePlan())
    filled(north, 1)
    with accounted(north, TRAIN, float("inf")):
        pass
    filled(north, 1)
    assert departures(north)[-1]["epsilon"] > 0.0
    (north / LEDGER).unlink()
    assert "states less than it did" in audit(north)["faults"][0]


@pytest.mark.parametrize("sql", ["DELETE FROM departures WHERE number = 6", "DELETE FROM head"])
def test_nothing_leaves_over_a_ledger_whose_end_was_changed(recorded: Path, tmp_path: Path, sql: str) -> None:
    """The next signature would hide it."""
    folder = tmp_path / "site"
    shutil.copytree(recorded, folder)
    guard = Egress(folder, own_key(folder), "north")
    Parcel(folder / OUTBOX).store(error_reply(asked(folder), "reason"))
    with open_egress(folder) as connection:
        connection.execute(sql)
    before = (folder / "pushed").read_text()
    for attempt in (
        lambda: guard.let_go(Parcel(folder / INBOX), Parcel(folder / OUTBOX)),
        lambda: Egress(folder, own_key(folder), "north"),
    ):
        with pytest.raises(SiteError, match="must end as this site signed it"):
            attempt()
    assert (folder / "pushed").read_text() == before
    assert audit(folder)["faults"]


def test_the_connection_has_one_way_on_which_contents_leave() -> None:
    """The other calls carry ids, the public key and times only: they have no place for anything else."""
    source = Path(connection_module.__file__).read_text()
    assert set(re.findall(r"self\._client\.(\w+)", source)) == {
        *("ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "PullMessages", "PullObject", "GetRun"),
        *("ConfirmMessageReceived", "PushMessages", "PushObject", "close"),
    }
    assert "outbox" in Connection.push.__code__.co_varnames
    others = [name for name in vars(Connection) if name != "push" and callable(getattr(Connection, name))]
    assert all(
        "Push" not in inspect.getsource(getattr(Connection, name)) for name in others if name in vars(Connection)
    )
    assert inspect.getsource(node).count("connection.push(") == 1


def test_only_the_owner_reads_the_ledger(recorded: Path) -> None:
    assert (recorded / EGRESS).stat().st_mode & 0o777 == 0o600


def test_the_audit_is_shown(recorded: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(site_commands, ["audit", str(recorded)], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "5 messages" in shown.output
    assert "whole: every row is as it was written" in shown.output
    told = runner.invoke(site_commands, ["audit", str(recorded), "--json"], catch_exceptions=False)
    assert json.loads(told.output) == audit(recorded)
    folder = tmp_path / "site"
    shutil.copytree(recorded, folder)
    with open_egress(folder) as connection:
        connection.execute("DELETE FROM departures WHERE number = 6")
    shown = runner.invoke(site_commands, ["audit", str(folder)], catch_exceptions=False)
    assert shown.exit_code == 1
    assert "NOT WHOLE" in shown.output
