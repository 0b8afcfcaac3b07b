"""Do messages reach the enrolled sites and come back as they were, and are Flower's internals as they are taken?"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from fastapi.routing import APIRoute
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.server.superlink.utils import check_abort
from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.state.alembic.utils import run_migrations
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.routers.fleet.router import router as flowers_router
from flwr.superlink.servicer.fleet import fleet_handlers
from sqlalchemy import Engine

import server.link
from client.parcels import Parcel
from server.calls import CALLS
from server.coordinator import DATABASE
from server.grid import running_grid
from server.link import connected_keys, open_link_state, parts_of, replies_to, site_names
from shared.keys import PrivateKey, public_pem
from shared.messages import ARRAYS, CONFIG, decode_weights
from shared.weights import Weights
from tests.server.links import LARGE, SMALL, Link, answer, content, link, pulled, take_part, task

Member = tuple[str, PrivateKey]
NUMBERS = count()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    with link(tmp_path_factory.mktemp("coordinator")) as served:
        served.enrol("south")
        yield served


@pytest.fixture
def north(place: Link) -> tuple[str, PrivateKey]:
    """A site of the test's own, and its key."""
    name = f"north-{next(NUMBERS)}"
    return name, place.enrol(name)


@pytest.mark.parametrize("weights", [{}, SMALL, LARGE, SMALL | LARGE])
def test_a_message_and_its_answer_arrive_as_they_were_sent(
    place: Link, north: Member, tmp_path: Path, weights: Weights
) -> None:
    node = place.node(north[0])
    with running_grid(place.state) as grid, place.connect(north[1]) as connection:
        assert node in grid.get_node_ids()
        (message_id,) = grid.push_messages([task(node, weights, "täsk")])
        inbox, outbox = Parcel(tmp_path / "inbox"), Parcel(tmp_path / "outbox")
        assert connection.pull(inbox)
        assert not connection.pull(Parcel(tmp_path / "second"))
        answer(inbox, outbox)  # what came, as it came
        connection.push(outbox)
        reply = pulled(grid, message_id)
        assert list(grid.pull_messages([message_id])) == []
    found = decode_weights(reply.content.array_records[ARRAYS])
    assert found.keys() == weights.keys()
    for name, array in weights.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes()
        assert found[name].shape == array.shape
    assert reply.content.config_records[CONFIG] == content({}, "täsk").config_records[CONFIG]
    assert reply.metadata.src_node_id == node
    assert reply.metadata.message_type == "train"


def test_arrays_with_pieces_in_common_arrive_too(place: Link, north: Member, tmp_path: Path) -> None:
    sizes = {"a": 2**23, "b": 2**24}  # pieces of nothing but zeros
    record = ArrayRecord({name: Array(np.zeros(size, dtype=np.uint8)) for name, size in sizes.items()})
    with running_grid(place.state) as grid, place.connect(north[1]) as connection:
        (message_id,) = grid.push_messages([Message(RecordDict({ARRAYS: record}), place.node(north[0]), "train")])
        take_part(connection, tmp_path)
        found = pulled(grid, message_id).content.array_records[ARRAYS]
    assert {name: len(array.data) for name, array in found.items()} == {n: s + 128 for n, s in sizes.items()}


def test_a_site_that_was_killed_is_let_in_again_at_once(place: Link, north: Member) -> None:
    killed = place.connect(north[1])
    killed.__enter__()  # and it never says goodbye
    try:
        with place.connect(north[1]):
            assert north[0] in {site_names(place.state)[node.node_id] for node in online(place)}
    finally:
        killed.__exit__(None, None, None)


def online(place: Link) -> list[NodeInfo]:
    return list(place.state.get_node_info(statuses=["online"]))


def test_a_message_that_was_not_confirmed_is_delivered_again(
    place: Link, north: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    node, inbox = place.node(north[0]), Parcel(tmp_path / "inbox")
    with running_grid(place.state) as grid:
        (message_id,) = grid.push_messages([task(node)])
        with place.connect(north[1]) as connection, monkeypatch.context() as patch:
            patch.setattr(connection, "confirm", killed)
            with pytest.raises(KilledError):
                connection.pull(inbox)
            assert not connection.pull(Parcel(tmp_path / "second"))
        inbox.clear()
        with place.connect(north[1]) as connection:
            take_part(connection, tmp_path)
        with place.connect(north[1]) as connection:
            assert not connection.pull(Parcel(tmp_path / "second"))  # what was confirmed is not
        assert pulled(grid, message_id).has_content()


def test_a_message_waits_for_the_other_site(place: Link, north: Member, tmp_path: Path) -> None:
    with running_grid(place.state) as grid, place.connect(north[1]) as connection:
        grid.push_messages([task(place.node("south"))])
        assert not connection.pull(Parcel(tmp_path / "inbox"))


def test_connected_sites_are_known_by_their_keys(place: Link, north: Member) -> None:
    own = public_pem(north[1].public_key()).decode()
    assert own not in connected_keys(place.state)
    with place.connect(north[1]):
        assert own in connected_keys(place.state)
    assert own not in connected_keys(place.state)


# The database


def test_only_its_owner_reads_the_database(place: Link) -> None:
    files = sorted(place.folder.glob(f"{DATABASE}*"))
    assert {file.suffix for file in files} >= {".db", ".db-wal", ".db-shm"}
    assert {file.stat().st_mode & 0o777 for file in files if file.suffix != ".lock"} == {0o600}
    assert place.folder.stat().st_mode & 0o777 == 0o700


def test_a_state_that_is_opened_again_knows_what_it_knew(place: Link, north: Member) -> None:
    assert site_names(open_link_state(place.folder / DATABASE)) == site_names(place.state)


def test_tables_are_laid_out_once_for_each_version_of_flower(place: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out: list[object] = []

    def lay_out(engine: Engine) -> None:
        laid_out.append(engine)
        run_migrations(engine)

    monkeypatch.setattr(server.link, "run_migrations", lay_out)
    open_link_state(place.folder / DATABASE)
    assert not laid_out
    monkeypatch.setattr(server.link, "_LAYOUT", server.link._LAYOUT + 1)  # another version of Flower
    for _ in range(2):
        open_link_state(place.folder / DATABASE)
        assert len(laid_out) == 1  # though nodes and messages, and their parts, are opened one by one


def test_processes_wait_for_one_another_a_minute(place: Link) -> None:
    assert isinstance(place.state, SqlLinkState)
    assert place.state.query("PRAGMA busy_timeout") == [{"timeout": 60_000}]
    assert dict(SQLITE_PRAGMAS) != dict(sql_mixin.SQLITE_PRAGMAS)  # type: ignore[attr-defined]


# The internals of Flower


def test_every_call_of_ours_is_one_of_flowers() -> None:
    """A call that Flower renames would not be translated; one that it adds is not served."""
    ours = set(CALLS)
    theirs = {path for method, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/") and method == "POST"}
    assert theirs - ours == {"/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/get-fab"}
    assert ours <= theirs
    assert {route.path for route in flowers_router.routes if isinstance(route, APIRoute)} == theirs


def test_handlers_take_what_they_are_given() -> None:
    for name in ("activate_node", "deactivate_node", "send_node_heartbeat", "get_run", "push_messages"):
        assert list(inspect.signature(getattr(fleet_handlers, name)).parameters) == ["request", "state"], name
    for name in ("pull_messages", "confirm_message_received"):
        assert list(inspect.signature(getattr(fleet_handlers, name)).parameters) == ["request", "state", "store"], name


def test_what_the_door_takes_from_flower_is_called_as_it_was() -> None:
    assert list(inspect.signature(authenticate_node).parameters) == ["request"]
    assert list(inspect.signature(http_error_translator).parameters) == ["request", "call_next"]
    assert list(inspect.signature(check_abort).parameters) == ["run_id", "abort_status_list", "state"]
    stored = ["self", "run_id", "session_id", "object_id", "object_content"]
    assert list(inspect.signature(SqlLinkState.store_object).parameters) == stored


def test_a_message_and_its_reply_are_rows_until_they_are_dropped(place: Link, north: Member, tmp_path: Path) -> None:
    node = place.node(north[0])
    with running_grid(place.state) as grid, place.connect(north[1]) as connection:
        (message_id,) = grid.push_messages([task(node, LARGE)])
        assert connection.pull(Parcel(tmp_path / "inbox"))
        assert replies_to(place.state, [message_id]) == {}
        answer(Parcel(tmp_path / "inbox"), Parcel(tmp_path / "outbox"))
        connection.push(Parcel(tmp_path / "outbox"))
        (reply,) = replies_to(place.state, [message_id]).values()
        outbox = Parcel(tmp_path / "outbox")
        parts = parts_of(place.state, reply.metadata.message_id)
        assert parts == {p.object_id: len(outbox.read(p.object_id)) for p in iterate_object_tree(outbox.tree)}
        assert sum(1 for size in parts.values() if size == max(s or 0 for s in parts.values())) >= 2  # several pieces
        grid.forget([message_id])
        assert replies_to(place.state, [message_id]) == {}
        assert parts_of(place.state, reply.metadata.message_id) == {}
        assert rows(place, "objects") == 0


def rows(place: Link, table: str) -> int:
    assert isinstance(place.state, SqlLinkState)
    return int(place.state.query(f"SELECT count(*) AS n FROM {table}")[0]["n"])


def test_nothing_of_a_run_stays_in_the_database(place: Link, north: Member, tmp_path: Path) -> None:
    for ending in ("well", "badly"):
        with pytest.raises(RuntimeError) if ending == "badly" else nullcontext(), running_grid(place.state) as grid:
            grid.push_messages([task(place.node(north[0]), LARGE, text) for text in ("a", "b")])
            with place.connect(north[1]) as connection:
                take_part(connection, tmp_path)
            assert rows(place, "objects") > 0
            if ending == "badly":
                raise RuntimeError
        for table in ("objects", "object_children", "message_ins", "message_res", "object_push_sessions"):
            assert rows(place, table) == 0, (ending, table)
