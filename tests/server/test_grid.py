"""Does a study on the network wait for what may still come, hold one reply at a time, and leave nothing behind?"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.message_pb2 import ObjectTree
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from hypothesis import given, settings
from hypothesis import strategies as st

from client.connection import RunEndedError
from client.parcels import Parcel
from server import grid as grids
from server.coordinator import DATABASE
from server.grid import LinkGrid, end_runs, running_grid
from shared.keys import PrivateKey
from shared.messages import FAILED_AT_SITE
from tests.server.links import LARGE, SMALL, Link, answer, content, link, pulled, take_part, task, wait_for

Member = tuple[int, PrivateKey]
NUMBERS = count()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    with link(tmp_path_factory.mktemp("coordinator")) as served:
        yield served


@pytest.fixture
def north(place: Link) -> Member:
    """A site of the test's own: its node and its key."""
    name = f"north-{next(NUMBERS)}"
    key = place.enrol(name)
    return place.node(name), key


@pytest.fixture
def grid(place: Link) -> Iterator[LinkGrid]:
    with running_grid(place.state) as running:
        yield running


# What is waited for


def test_a_message_to_a_site_that_is_not_connected_waits_for_it(
    place: Link, grid: LinkGrid, north: Member, tmp_path: Path
) -> None:
    node, key = north
    assert node not in grid.get_node_ids()
    (message_id,) = grid.push_messages([task(node)])
    assert message_id
    assert list(grid.pull_messages([message_id])) == []  # and no error in place of an answer
    with place.connect(key) as connection:
        take_part(connection, tmp_path)
    assert pulled(grid, message_id).has_content()  # also when it has left again


def test_a_message_to_nobody_has_no_id(place: Link, grid: LinkGrid, north: Member) -> None:
    assert list(grid.push_messages([task(77)])) == [""]
    (first, second) = grid.push_messages([task(77), task(north[0])])
    assert (first, bool(second)) == ("", True)


def test_an_answer_is_there_when_all_of_it_has_come(
    place: Link, grid: LinkGrid, north: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, key = north
    (message_id,) = grid.push_messages([task(node, LARGE)])
    inbox, outbox = Parcel(tmp_path / "inbox"), Parcel(tmp_path / "outbox")
    with place.connect(key) as connection:
        assert connection.pull(inbox)
        answer(inbox, outbox)
        read, seen = Parcel.read, list[int]()

        def read_and_look(parcel: Parcel, part: str) -> bytes:
            seen.append(len(list(grid.pull_messages([message_id]))))
            return read(parcel, part)

        with monkeypatch.context() as patch:
            patch.setattr(Parcel, "read", read_and_look)
            connection.push(outbox)
        assert len(seen) >= 5
        assert set(seen) == {0}
    assert pulled(grid, message_id).has_content()


def test_answers_come_one_at_a_time(place: Link, grid: LinkGrid, north: Member, tmp_path: Path) -> None:
    node, key = north
    ids = set(grid.push_messages([task(node, SMALL, text) for text in "abc"]))
    with place.connect(key) as connection:
        for _ in ids:
            take_part(connection, tmp_path)
    while ids:
        (reply,) = grid.pull_messages(ids)
        ids.remove(reply.metadata.reply_to_message_id)
    assert list(grid.pull_messages(ids)) == []


def test_an_error_is_an_answer(place: Link, grid: LinkGrid, north: Member, tmp_path: Path) -> None:
    (message_id,) = grid.push_messages([task(north[0])])
    inbox, outbox = Parcel(tmp_path / "inbox"), Parcel(tmp_path / "outbox")
    with place.connect(north[1]) as connection:
        assert connection.pull(inbox)
        outbox.store(Message(Error(1000, "no"), reply_to=inbox.header()))
        connection.push(outbox)
    assert pulled(grid, message_id).error.reason == "no"


# What comes too late


def test_an_answer_that_nobody_waits_for_is_refused_and_the_site_hears_it(
    place: Link, grid: LinkGrid, north: Member, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.door")
    (message_id,) = grid.push_messages([task(north[0])])
    inbox, outbox = Parcel(tmp_path / "inbox"), Parcel(tmp_path / "outbox")
    with place.connect(north[1]) as connection:
        assert connection.pull(inbox)
        answer(inbox, outbox)
        grid.forget([message_id])
        with pytest.raises(RunEndedError, match="answer must still be awaited"):
            connection.confirm(inbox)
        with pytest.raises(RunEndedError, match="answer must still be awaited"):
            connection.push(outbox)
        assert connection.is_wanted(grid.run_id)  # the run goes on
    assert any(r.getMessage().startswith("late answer of north-") for r in caplog.records)
    assert list(grid.pull_messages([message_id])) == []


def test_a_message_is_dropped_also_while_it_comes_or_goes(
    place: Link, grid: LinkGrid, north: Member, tmp_path: Path
) -> None:
    node, key = north
    inbox, outbox = Parcel(tmp_path / "inbox"), Parcel(tmp_path / "outbox")
    with place.connect(key) as connection:
        (message_id,) = grid.push_messages([task(node, LARGE)])
        with forgetting(grid, message_id, "PullObject"), pytest.raises(RunEndedError):
            connection.pull(inbox)
        (message_id,) = grid.push_messages([task(node, LARGE)])
        assert connection.pull(inbox)
        answer(inbox, outbox)
        with forgetting(grid, message_id, "PushObject"), pytest.raises(Exception, match="whole messages"):
            connection.push(outbox)
        with pytest.raises(RunEndedError):
            connection.push(outbox)
    assert list(grid.pull_messages([message_id])) == []


@contextmanager
def forgetting(grid: LinkGrid, message_id: str, name: str) -> Iterator[None]:
    """While this holds, the message is dropped before the second such call."""
    real, calls = getattr(FleetHttpClient, name), count()

    def call(self: FleetHttpClient, request: object) -> object:
        if next(calls) == 1:
            grid.forget([message_id])
        return real(self, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FleetHttpClient, name, call)
        yield


# The end of a run


@pytest.mark.parametrize("ending", [None, RuntimeError, SystemExit, KeyboardInterrupt])
def test_sites_see_within_seconds_that_a_run_has_ended(
    place: Link, north: Member, tmp_path: Path, ending: type[BaseException] | None
) -> None:
    inbox = Parcel(tmp_path / "inbox")
    with place.connect(north[1]) as connection:
        with pytest.raises(ending) if ending is not None else nullcontext():  # noqa: SIM117
            with running_grid(place.state) as grid:
                grid.push_messages([task(north[0])])
                assert connection.pull(inbox)
                assert connection.is_wanted(inbox.run_id)
                if ending is not None:
                    raise ending
        started = time.monotonic()
        assert not connection.is_wanted(inbox.run_id)
        assert time.monotonic() - started < 2
        assert not grid.is_running()
        answer(inbox, Parcel(tmp_path / "outbox"))
        with pytest.raises(RunEndedError):
            connection.push(Parcel(tmp_path / "outbox"))
        assert not connection.is_wanted(12345)  # nor one that never was


def test_nothing_is_pushed_into_a_run_that_has_ended(place: Link, north: Member) -> None:
    with running_grid(place.state) as grid:
        end_runs(place.state)
        with pytest.raises(grids.RunEndedError, match="must be running"):
            grid.push_messages([task(north[0])])


def test_no_heartbeat_stays(place: Link) -> None:
    with running_grid(place.state):
        assert "heartbeat" in {thread.name for thread in threading.enumerate()}
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_a_heartbeat_that_fails_once_goes_on(
    place: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beats: list[int] = []

    def beat(task_id: int) -> bool:
        beats.append(task_id)
        if len(beats) == 1:
            raise OSError("disk full")
        return True

    monkeypatch.setattr(grids, "_HEARTBEAT_S", 0.01)
    monkeypatch.setattr(place.state, "acknowledge_task_heartbeat", beat)
    with running_grid(place.state):
        wait_for(lambda: len(beats) > 5)
    assert "the heartbeat of run" in caplog.text


STUDY = """
import sys, time
from pathlib import Path
from server.grid import running_grid
from server.link import open_link_state
from tests.server.links import LARGE, task
with running_grid(open_link_state(Path(sys.argv[1]))) as grid:
    grid.push_messages([task(int(sys.argv[2]), LARGE)])
    print("running", flush=True)
    time.sleep(60)
"""


def test_a_study_that_was_killed_is_taken_up_at_once(place: Link, north: Member, tmp_path: Path) -> None:
    inbox, command = Parcel(tmp_path / "inbox"), [sys.executable, "-c", STUDY]
    arguments = [str(place.folder / DATABASE), str(north[0])]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as study:
        try:
            assert study.stdout is not None
            assert study.stdout.readline() == b"running\n"
            with place.connect(north[1]) as connection:
                assert connection.pull(inbox)
                study.kill()
                study.wait(20)
                assert connection.is_wanted(inbox.run_id)  # nobody has noticed yet
                started = time.monotonic()
                with running_grid(place.state) as grid:
                    assert time.monotonic() - started < 5
                    assert not connection.is_wanted(inbox.run_id)
                    inbox.clear()
                    (message_id,) = grid.push_messages([task(north[0])])
                    take_part(connection, tmp_path)
                    assert pulled(grid, message_id).has_content()
        finally:
            study.kill()


# Answers that are none


def hand_in(
    grid: LinkGrid, message_id: str, node: int, make: Callable[[Message], tuple[ObjectTree, dict[str, bytes]]]
) -> None:
    """Put a reply into the database as a site that is enrolled, and hostile, can."""
    asked = Message(RecordDict(), node, "train")
    asked.metadata.__dict__["_message_id"] = message_id
    header = Message(RecordDict(), reply_to=asked, ttl=60.0)  # a reply must not outlive what it answers
    tree, parts = make(header)
    header.metadata.__dict__["_message_id"] = tree.object_id
    session = grid.state.start_session(grid.run_id)
    stored, missing = grid.state.store_message_and_object_tree(header, tree, session)
    assert stored
    for name in dict.fromkeys(missing):
        assert grid.state.store_object(grid.run_id, session, name, parts[name])


def part(kind: str, children: list[str], body: bytes) -> tuple[str, bytes]:
    made = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(made).hexdigest(), made


def told(grid: LinkGrid, message_id: str) -> str:
    reply = pulled(grid, message_id)
    assert reply.error.code == FAILED_AT_SITE
    assert list(grid.pull_messages([message_id])) == []
    return str(reply.error.reason)


def test_one_piece_named_a_million_times_is_refused(grid: LinkGrid, north: Member) -> None:
    def bomb(header: Message) -> tuple[ObjectTree, dict[str, bytes]]:
        piece, written = part("ArrayChunk", [], bytes(2**20))
        body = {"dtype": "uint8", "shape": [2**40], "stype": "x", "arraychunk_ids": [0] * 2**20}
        array, described = part("Array", [piece], json.dumps(body).encode())
        tree = ObjectTree(object_id=array, children=[ObjectTree(object_id=piece)])
        return tree, {piece: written, array: described}

    (message_id,) = grid.push_messages([task(north[0])])
    hand_in(grid, message_id, north[0], bomb)
    assert "must take at most" in told(grid, message_id)


def test_an_answer_many_times_as_large_as_the_task_is_refused(
    grid: LinkGrid, north: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    def large(header: Message) -> tuple[ObjectTree, dict[str, bytes]]:
        piece, written = part("ArrayChunk", [], bytes(2**21))
        return ObjectTree(object_id=piece), {piece: written}

    monkeypatch.setattr(grids, "_REPLY_BYTES", 2**20)
    (message_id,) = grid.push_messages([task(north[0])])
    hand_in(grid, message_id, north[0], large)
    assert "reply must be of at most" in told(grid, message_id)


def test_an_answer_in_anothers_name_is_its_senders(place: Link, grid: LinkGrid, north: Member) -> None:
    """What stands inside of a reply about who sent it, and to what, counts for nothing."""
    other = place.node("north-0")

    def forged(header: Message) -> tuple[ObjectTree, dict[str, bytes]]:
        inner = task(other)
        inner.metadata.__dict__["_message_id"] = inner.object_id
        return get_object_tree(inner), {name: one.deflate() for name, one in get_all_nested_objects(inner).items()}

    (message_id,) = grid.push_messages([task(north[0])])
    hand_in(grid, message_id, north[0], forged)
    reply = pulled(grid, message_id)
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (north[0], SUPERLINK_NODE_ID)


@settings(max_examples=25)
@given(data=st.data())
def test_whatever_a_site_makes_up_is_an_error_of_that_site(grid: LinkGrid, north: Member, data: st.DataObject) -> None:
    kinds = st.sampled_from(["Message", "RecordDict", "ArrayRecord", "Array", "ArrayChunk", "ConfigRecord"])
    bodies = st.binary(max_size=40) | st.sampled_from([b"{}", b"[]", b'{"arraychunk_ids": [0, 0]}', b"null", b'"x"'])

    def made_up(header: Message) -> tuple[ObjectTree, dict[str, bytes]]:
        trees: list[ObjectTree] = []
        parts: dict[str, bytes] = {}
        for _ in range(data.draw(st.integers(1, 4))):
            inner = (
                data.draw(st.lists(st.sampled_from(trees), max_size=2, unique_by=lambda t: t.object_id))
                if trees
                else []
            )
            name, written = part(data.draw(kinds), [tree.object_id for tree in inner], data.draw(bodies))
            if name not in parts:
                trees.append(ObjectTree(object_id=name, children=inner))
                parts[name] = written
        return trees[-1], parts

    (message_id,) = grid.push_messages([task(north[0], {}, data.draw(st.text()))])
    hand_in(grid, message_id, north[0], made_up)
    assert "must be put together from its parts" in told(grid, message_id)


def test_other_parts_than_were_announced_are_an_error(grid: LinkGrid, north: Member) -> None:
    """The names that the message gives its parts are not those of the tree that was announced with it."""

    def unannounced(header: Message) -> tuple[ObjectTree, dict[str, bytes]]:
        inner = Message(content(SMALL), north[0], "train")
        name = inner.object_id
        return ObjectTree(object_id=name), {name: inner.deflate()}

    (message_id,) = grid.push_messages([task(north[0])])
    hand_in(grid, message_id, north[0], unannounced)
    assert "must be put together from its parts" in told(grid, message_id)


# The grid as Flower's strategies know it


def test_the_grid_is_one_of_flower(grid: LinkGrid, north: Member) -> None:
    assert isinstance(grid, Grid)
    assert grid.run.run_id == grid.run_id
    assert (TaskIdentity.run_id, TaskIdentity.node_id) == (grid.run_id, SUPERLINK_NODE_ID)
    grid.set_run(grid.run)
    message = grid.create_message(content(SMALL), "train", north[0], "3", ttl=60.0)
    assert (message.metadata.dst_node_id, message.metadata.group_id, message.metadata.ttl) == (north[0], "3", 60.0)
    with pytest.raises(NotImplementedError):
        grid.send_and_receive([])


def test_nodes_are_those_that_are_connected(place: Link, grid: LinkGrid, north: Member) -> None:
    assert list(grid.get_nodes()) == []
    with place.connect(north[1]):
        assert list(grid.get_node_ids()) == [north[0]]
        assert [node.node_id for node in grid.get_nodes()] == [north[0]]
    assert list(grid.get_node_ids()) == []
