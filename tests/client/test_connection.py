"""Does a site hear why it cannot speak with the coordinator, and lose nothing when the line breaks?"""

from __future__ import annotations

import inspect
import logging
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse, PushObjectRequest
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from hypothesis import given, settings
from hypothesis import strategies as st

from client import connection as connections
from client.connection import Connection, NotAdmittedError, RunEndedError, UnreachableError
from client.parcels import Parcel
from server.coordinator import Settings, init
from server.grid import running_grid
from shared.errors import FedretinaError, MessageError
from shared.keys import PrivateKey, new_key
from shared.messages import ARRAYS, decode_weights
from tests.server.links import LARGE, Link, answer, free_port, link, pulled, serving, take_part, task, wait_for

KEY = new_key()
NUMBERS = count()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    with link(tmp_path_factory.mktemp("coordinator")) as served:
        yield served


@pytest.fixture
def north(place: Link) -> tuple[int, PrivateKey]:
    """A site of the test's own: its node and its key."""
    name = f"north-{next(NUMBERS)}"
    key = place.enrol(name)
    return place.node(name), key


# What is told


def test_a_coordinator_that_is_not_there_is_told_of(place: Link, north: tuple[int, PrivateKey]) -> None:
    for address in (f"127.0.0.1:{free_port()}", "nowhere.invalid:1"):
        with pytest.raises(UnreachableError, match=f"{address} must be reachable, got 'ConnectError'"):
            place.connect(north[1], address).__enter__()


def test_a_line_that_is_closed_as_it_opens_is_told_of(place: Link, north: tuple[int, PrivateKey]) -> None:
    with proxy(place.port, cut_after=0) as port, pytest.raises(UnreachableError, match="must be reachable"):
        place.connect(north[1], f"127.0.0.1:{port}").__enter__()


def test_a_site_that_is_not_admitted_is_told_what_to_do(place: Link) -> None:
    with pytest.raises(NotAdmittedError, match="Ask the coordinator whether the site is enrolled"):
        place.connect(new_key()).__enter__()


def test_a_run_that_ended_is_told_of(place: Link, north: tuple[int, PrivateKey], tmp_path: Path) -> None:
    inbox, outbox = Parcel(tmp_path / "inbox"), Parcel(tmp_path / "outbox")
    with place.connect(north[1]) as connection:
        with running_grid(place.state) as grid:
            grid.push_messages([task(north[0])])
            assert connection.pull(inbox)
            answer(inbox, outbox)
            assert connection.is_wanted(inbox.run_id)
        assert not connection.is_wanted(inbox.run_id)
        with pytest.raises(RunEndedError):
            connection.push(outbox)
        with pytest.raises(RunEndedError):
            connection.confirm(inbox)


def test_an_answer_that_the_coordinator_does_not_take_is_not_sent_for_ever(
    place: Link, north: tuple[int, PrivateKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.calls.PARTS_LIMIT", 3)
    with running_grid(place.state) as grid, place.connect(north[1]) as connection:
        grid.push_messages([task(north[0])])
        with pytest.raises(MessageError, match=r"answer must be one that the coordinator takes, got .*too many parts"):
            take_part(connection, tmp_path)


def test_nothing_stays_open_of_an_attempt_that_failed(place: Link) -> None:
    attempt = place.connect(new_key())
    with pytest.raises(NotAdmittedError), attempt:
        pass
    assert attempt._client._client.is_closed


def test_a_coordinator_that_goes_away_does_not_keep_a_site_from_leaving(place: Link, tmp_path: Path) -> None:
    key = place.enrol(f"north-{next(NUMBERS)}")
    with proxy(place.port) as port:
        connection = place.connect(key, f"127.0.0.1:{port}")
        connection.__enter__()
    connection.__exit__(None, None, None)
    assert connection._client._client.is_closed


# Heartbeats


def test_heartbeats_keep_a_site_connected(
    place: Link, north: tuple[int, PrivateKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_HEARTBEAT_S", 0.05)

    def online_until() -> float:
        return float(place.state.get_node_info(node_ids=[north[0]])[0].online_until)

    with place.connect(north[1]):
        first = online_until()
        wait_for(lambda: online_until() > first)
        place.state.deactivate_node(north[0])  # as after a long silence
        wait_for(lambda: place.state.get_node_info(node_ids=[north[0]])[0].status == "online")


def test_a_heartbeat_that_fails_is_not_the_last(
    place: Link, north: tuple[int, PrivateKey], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "client.connection")
    monkeypatch.setattr(connections, "_HEARTBEAT_S", 0.05)
    beat, beats = FleetHttpClient.SendNodeHeartbeat, list[str]()

    def sometimes(self: FleetHttpClient, request: Any) -> Any:
        beats.append("")
        if len(beats) <= 2:
            raise OSError("the line is down")
        return beat(self, request)

    monkeypatch.setattr(FleetHttpClient, "SendNodeHeartbeat", sometimes)
    with place.connect(north[1]):
        wait_for(lambda: len(beats) > 5)
    assert "must be reachable, got 'OSError'" in caplog.text


def test_what_is_announced_is_twice_what_is_kept() -> None:
    assert connections._ANNOUNCED_HEARTBEAT_S >= 2 * connections._HEARTBEAT_S


# A line that breaks


@contextmanager
def proxy(port: int, cut_after: int | None = None) -> Iterator[int]:
    """A line to a port; each connection over it breaks after so many bytes of the site."""
    listener = socket.create_server(("127.0.0.1", 0))
    ends: list[socket.socket] = []

    def copy(source: socket.socket, target: socket.socket, most: int | None) -> None:
        copied = 0
        with suppress(OSError):
            while most is None or copied < most:
                piece = source.recv(65536 if most is None else min(65536, most - copied))
                if not piece:
                    break
                target.sendall(piece)
                copied += len(piece)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                site = listener.accept()[0]
                coordinator = socket.create_connection(("127.0.0.1", port))
                ends.extend((site, coordinator))
                for arguments in ((site, coordinator, cut_after), (coordinator, site, None)):
                    threads.append(threading.Thread(target=copy, args=arguments, daemon=True))
                    threads[-1].start()

    threads = [threading.Thread(target=accept, daemon=True)]
    threads[0].start()
    try:
        yield listener.getsockname()[1]
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        for end in ends:
            end.close()


@pytest.mark.parametrize("cut_after", [6_000, 3_000_000, 9_000_000, 12_000_000])
def test_an_answer_goes_on_where_the_line_broke(
    place: Link, north: tuple[int, PrivateKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_after: int
) -> None:
    """What arrived is not sent again."""
    push, begun, arrived = FleetHttpClient.PushObject, list[str](), list[str]()

    def counted(self: FleetHttpClient, request: PushObjectRequest) -> Any:
        begun.append(request.object_id)
        done = push(self, request)
        arrived.append(request.object_id)
        return done

    monkeypatch.setattr(FleetHttpClient, "PushObject", counted)
    inbox, outbox = Parcel(tmp_path / "inbox"), Parcel(tmp_path / "outbox")
    with running_grid(place.state) as grid:
        (message_id,) = grid.push_messages([task(north[0], LARGE)])
        with place.connect(north[1]) as connection:
            assert connection.pull(inbox)
        answer(inbox, outbox, LARGE)
        with proxy(place.port, cut_after) as port:
            broken = place.connect(north[1], f"127.0.0.1:{port}")
            with pytest.raises(UnreachableError), broken:
                broken.push(outbox)
        assert len(begun) - len(arrived) <= 1
        assert list(grid.pull_messages([message_id])) == []
        with place.connect(north[1]) as connection:
            connection.push(outbox)
        found = decode_weights(pulled(grid, message_id).content.array_records[ARRAYS])
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in LARGE.items()}
    parts = {part.object_id for part in iterate_object_tree(outbox.tree)}
    assert Counter(arrived) == Counter(parts)


def test_a_message_comes_anew_after_the_line_broke(
    place: Link, north: tuple[int, PrivateKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull, calls = FleetHttpClient.PullObject, count()

    def breaking(self: FleetHttpClient, request: Any) -> Any:
        if next(calls) == 3:
            raise ConnectionResetError
        return pull(self, request)

    monkeypatch.setattr(FleetHttpClient, "PullObject", breaking)
    inbox = Parcel(tmp_path / "inbox")
    with running_grid(place.state) as grid:
        grid.push_messages([task(north[0], LARGE)])
        with pytest.raises(UnreachableError, match="ConnectionResetError"), place.connect(north[1]) as connection:
            connection.pull(inbox)
        assert not inbox.is_there
        with place.connect(north[1]) as connection:
            assert connection.pull(inbox)
    found = decode_weights(inbox.load().content.array_records[ARRAYS])
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in LARGE.items()}


# A coordinator that says what no coordinator says


class Impostor:
    """Who has the coordinator's certificate, and answers every call with what is given."""

    def __init__(self) -> None:
        self.status, self.answers = 200, dict[str, bytes]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            while (await receive()).get("more_body"):
                pass
            body = self.answers.get(scope["path"].rsplit("/", 1)[1], b"")
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": self.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def impostor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Impostor, Connection]]:
    folder, port, said = tmp_path_factory.mktemp("coordinator"), free_port(), Impostor()
    init(folder, Settings(port=port))
    said.answers["activate-node"] = ActivateNodeResponse(node_id=7).SerializeToString()
    with serving(said, folder, port), Connection(f"127.0.0.1:{port}", (folder / "ca.crt").read_bytes(), KEY) as site:
        yield said, site


@pytest.fixture
def hostile(impostor: tuple[Impostor, Connection]) -> Iterator[tuple[Impostor, Connection]]:
    yield impostor
    impostor[0].status, impostor[0].answers = 200, {}


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 410, 413, 418, 429, 500, 502, 503])
def test_every_refusal_is_one_of_ours(hostile: tuple[Impostor, Connection], tmp_path: Path, status: int) -> None:
    said, site = hostile
    said.status = status
    for body in (b"", b"no", b'{"code": "x", "detail": 1}', b"[]", b"null", b"\xff", b"9" * 100_000, b"[" * 9000):
        said.answers["pull-messages"] = body
        with pytest.raises(FedretinaError) as refused:
            site.pull(Parcel(tmp_path / "inbox"))
        assert len(str(refused.value)) < 400


def test_an_answer_that_is_none_is_told_of(hostile: tuple[Impostor, Connection], tmp_path: Path) -> None:
    said, site = hostile
    said.answers["pull-messages"] = b"\xff\xff\xff"
    with pytest.raises(UnreachableError, match="must be reachable, got 'ValueError'"):
        site.pull(Parcel(tmp_path / "inbox"))


def message(name: str = "a" * 64) -> ProtoMessage:
    made = ProtoMessage()
    made.metadata.message_id, made.metadata.run_id = name, 5
    return made


@pytest.mark.parametrize(
    "found",
    [
        PullMessagesResponse(messages_list=[message()]),
        PullMessagesResponse(messages_list=[message()] * 2, message_object_trees=[ObjectTree(object_id="a" * 64)] * 2),
        PullMessagesResponse(messages_list=[message()], message_object_trees=[ObjectTree(object_id="b" * 64)]),
        PullMessagesResponse(messages_list=[message("")], message_object_trees=[ObjectTree()]),
        PullMessagesResponse(messages_list=[message("../x")], message_object_trees=[ObjectTree(object_id="../x")]),
        PullMessagesResponse(
            messages_list=[message()],
            message_object_trees=[
                ObjectTree(object_id="a" * 64, children=[ObjectTree(object_id="../../../state/approvals")])
            ],
        ),
    ],
)
def test_what_is_no_message_is_not_taken(
    hostile: tuple[Impostor, Connection], tmp_path: Path, found: PullMessagesResponse
) -> None:
    said, site = hostile
    said.answers["pull-messages"] = found.SerializeToString()
    said.answers["pull-object"] = PullObjectResponse(
        object_found=True, object_available=True, object_content=b"x"
    ).SerializeToString()
    with pytest.raises(MessageError):
        site.pull(Parcel(tmp_path / "state/work/inbox"))
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == set()


@settings(max_examples=150)
@given(data=st.data())
def test_whatever_is_answered_ends_in_a_message_or_an_error_of_ours(
    hostile: tuple[Impostor, Connection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(connections, "_PART_S", 0.0)
    said, site = hostile
    name = "a" * 64
    whole = PullMessagesResponse(messages_list=[message(name)], message_object_trees=[ObjectTree(object_id=name)])
    found = PullObjectResponse(object_found=True, object_available=True, object_content=b"x")
    said.answers = {"pull-messages": whole.SerializeToString(), "pull-object": found.SerializeToString()}
    for call in data.draw(st.sets(st.sampled_from(["pull-messages", "pull-object", "confirm-message-received"]))):
        body = bytearray(said.answers.get(call, b""))
        for _ in range(data.draw(st.integers(1, 3))):
            where = data.draw(st.integers(0, len(body)))
            body[where : where + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        said.answers[call] = bytes(body)
    inbox = Parcel(tmp_path / "inbox")
    with suppress(FedretinaError):
        assert site.pull(inbox) in (True, False)
    inbox.clear()


def test_a_part_that_never_comes_is_not_waited_for_long(
    hostile: tuple[Impostor, Connection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study's process may have been killed while it wrote the message."""
    monkeypatch.setattr(connections, "_PART_S", 0.5)
    said, site = hostile
    name = "a" * 64
    whole = PullMessagesResponse(messages_list=[message(name)], message_object_trees=[ObjectTree(object_id=name)])
    said.answers = {
        "pull-messages": whole.SerializeToString(),
        "pull-object": PullObjectResponse(object_found=True).SerializeToString(),
    }
    with pytest.raises(UnreachableError, match="must send whole messages"):
        site.pull(Parcel(tmp_path / "inbox"))


# The internals of Flower


def test_codes_of_errors_come_with_the_statuses_that_they_are_known_by() -> None:
    statuses = {
        ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED: 403,
        ApiErrorCode.FLEET_GET_RUN_FAILED: 403,
        ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED: 412,
    }
    assert {code: API_ERROR_MAP[code].http_status_code for code in statuses} == statuses


def test_flowers_client_and_signature_take_what_they_are_given() -> None:
    assert list(inspect.signature(NodeAuthHttpInterceptor).parameters) == ["private_key", "public_key"]
    taken = list(inspect.signature(FleetHttpClient.from_server_address).parameters)
    assert taken == ["server_address", "insecure", "root_certificates", "interceptors", "retry_invoker"]


def test_a_site_has_no_way_to_take_a_program() -> None:
    source = inspect.getsource(connections)
    assert "GetFab" not in source
    assert "fab" not in source.lower().replace("fabric", "")
