"""What does somebody get who reaches the coordinator's port but was not enrolled, or who is and wants more?"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import ssl
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.main import create_app
from google.protobuf.message import Message as ProtoMessage  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client import connection as connections
from client.connection import Connection, NotAdmittedError, UnreachableError
from client.parcels import Parcel
from server.calls import PARTS_LIMIT
from server.certificates import CA_CERTIFICATE, create_authority
from server.coordinator import LOG, Settings, init
from server.door import REQUEST_LIMIT_BYTES
from server.enrolment import enrol, revoke
from server.grid import LinkGrid, running_grid
from server.link import is_awaited
from shared.errors import KeyFileError
from shared.keys import PrivateKey, new_key, public_pem
from tests.e2e.nursery import python
from tests.server.links import SMALL, Link, answer, free_port, link, pulled, take_part, task, wait_for


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    with link(tmp_path_factory.mktemp("coordinator")) as served:
        yield served


@pytest.fixture(scope="module")
def north(place: Link) -> PrivateKey:
    return place.enrol("north")


@pytest.fixture(scope="module")
def south(place: Link) -> PrivateKey:
    return place.enrol("south")


@pytest.fixture(scope="module")
def client(place: Link) -> Iterator[httpx.Client]:
    """Whoever has the certificate of the authority, and the network."""
    with httpx.Client(base_url=f"https://{place.address}", verify=trusting(place.folder / CA_CERTIFICATE)) as one:
        yield one


def trusting(authority: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority))


def signed(key: PrivateKey, shown: PrivateKey | None = None, at: datetime | None = None) -> dict[str, str]:
    """The headers of a site with this key, which may show another's."""
    stamp = (at or datetime.now(UTC)).isoformat()
    public = public_pem((shown or key).public_key())
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public).decode(),
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, stamp.encode())).decode(),
        "content-type": PROTOBUF_MEDIA_TYPE,
    }


def call(
    client: httpx.Client, name: str, request: ProtoMessage | bytes, key: PrivateKey, **more: PrivateKey | datetime
) -> httpx.Response:
    body = request if isinstance(request, bytes) else request.SerializeToString()
    headers = signed(key, **more)  # type: ignore[arg-type]
    return client.post(f"/v1/fleet/{name}", content=body, headers=headers)


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "server.door"]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "server.door")
    return caplog


# Strangers


def flowers_routes() -> list[tuple[str, str]]:
    routes = [context.route for context in iter_route_contexts(create_app().routes)]
    found = [(method, route.path) for route in routes for method in route.methods]  # type: ignore[attr-defined]
    assert len(found) > 70
    for prefix in ("/health", "/v1/control/", "/v1/fleet/", "/v1/runtime/"):
        assert any(path.startswith(prefix) for _, path in found), prefix
    return found


def test_no_call_of_flower_is_open_to_a_stranger(
    client: httpx.Client, place: Link, north: PrivateKey, told: pytest.LogCaptureFixture
) -> None:
    """Listing and registering nodes, starting and claiming runs, logs, objects: with a key of one's own or none."""
    before = place.state.get_node_info(), place.state.get_run_info()
    for method, path in flowers_routes():
        for headers in ({}, {"content-type": PROTOBUF_MEDIA_TYPE}, signed(new_key())):
            told.clear()
            answer = client.request(method, path.format(series_id=1), headers=headers)
            assert answer.status_code in (401, 404, 405), (method, path, answer.status_code)
            assert answer.content == b""
            assert refusals(told) == [f"{path} refused to 127.0.0.1: status {answer.status_code}"]
    assert (place.state.get_node_info(), place.state.get_run_info()) == before


def test_a_site_has_the_nine_calls_that_it_needs(client: httpx.Client, north: PrivateKey) -> None:
    found = {
        path
        for method, path in flowers_routes()
        if client.request(method, path, headers=signed(north)).status_code not in (404, 405)
    }
    assert found == {
        f"/v1/fleet/{name}"
        for name in (
            "activate-node",
            "deactivate-node",
            "send-node-heartbeat",
            "get-run",
            "pull-messages",
            "pull-object",
            "confirm-message-received",
            "push-messages",
            "push-object",
        )
    }


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol%2flist-nodes",
        "//v1/control/list-nodes",
        "/v1/fleet/pull-messages/",
        "/V1/fleet/pull-messages",
        "/v1/fleet/pull-messages/../../control/list-nodes",
        "/v1/fleet/%00",
        "/etc/passwd",
        "/",
    ],
)
def test_no_way_of_writing_a_path_leads_elsewhere(place: Link, north: PrivateKey, path: str) -> None:
    assert status_of(place, f"POST {path} HTTP/1.1", length=0, headers=signed(north)) in (400, 404)


def test_an_enrolled_key_is_not_enough_without_its_signature(
    client: httpx.Client, place: Link, north: PrivateKey, told: pytest.LogCaptureFixture
) -> None:
    request = PullMessagesRequest(node=Node(node_id=place.node("north")))
    for headers in (
        signed(new_key(), shown=north),
        signed(north) | {FLEET_HTTP_SIGNATURE_HEADER: "?"},
        signed(north) | {FLEET_HTTP_SIGNATURE_HEADER: ""},
        signed(north) | {TIMESTAMP_HEADER: datetime.now(UTC).isoformat()},
        {name: value for name, value in signed(north).items() if name != FLEET_HTTP_SIGNATURE_HEADER},
        {name: value for name, value in signed(north).items() if name != TIMESTAMP_HEADER},
    ):
        found = client.post("/v1/fleet/pull-messages", content=request.SerializeToString(), headers=headers)
        assert found.status_code == 401
    assert len(refusals(told)) == 6
    assert call(client, "pull-messages", request, north).status_code == 200


def test_a_signature_is_good_for_minutes_only(client: httpx.Client, place: Link, north: PrivateKey) -> None:
    request = PullMessagesRequest(node=Node(node_id=place.node("north")))
    for minutes, status in ((-60, 401), (-6, 401), (-4, 200), (0, 200), (1, 401), (60, 401)):
        at = datetime.now(UTC) + timedelta(minutes=minutes)
        assert call(client, "pull-messages", request, north, at=at).status_code == status, minutes


def test_an_unregistered_key_is_not_admitted(place: Link) -> None:
    with pytest.raises(NotAdmittedError, match="must know the site's key"), place.connect(new_key()):
        pass


def test_no_node_registers_itself(client: httpx.Client, place: Link, north: PrivateKey) -> None:
    key, before = new_key(), len(place.state.get_node_info())
    request = RegisterNodeFleetRequest(public_key=public_pem(key.public_key()))
    for signer in (key, north):
        assert call(client, "register-node", request, signer).status_code == 404
    assert len(place.state.get_node_info()) == before


def test_speaking_without_tls_gets_nothing(place: Link, north: PrivateKey) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"http://{place.address}/v1/fleet/activate-node", headers=signed(north))
    with place.connect(north):
        pass


def test_a_site_that_trusts_another_authority_does_not_speak(place: Link, north: PrivateKey, tmp_path: Path) -> None:
    create_authority(tmp_path)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://{place.address}/", verify=trusting(tmp_path / CA_CERTIFICATE))
    other = Connection(place.address, (tmp_path / CA_CERTIFICATE).read_bytes(), north)
    with pytest.raises(UnreachableError, match="must show the certificate that the kit tells of"), other:
        pass


def test_a_certificate_counts_for_its_addresses_only(place: Link, client: httpx.Client) -> None:
    """The server is reached under another name than those in its certificate."""
    context = trusting(place.folder / CA_CERTIFICATE)
    with (
        socket.create_connection(("127.0.0.1", place.port)) as plain,
        pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
    ):
        context.wrap_socket(plain, server_hostname="elsewhere.example")


# Sites whose leave ended


def test_a_site_is_out_the_moment_its_leave_is_taken(
    place: Link, told: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    key = place.enrol("west")
    with running_grid(place.state) as grid, place.connect(key) as connection:
        grid.push_messages([task(place.node("west"))])
        node = place.node("west")
        place.revoke("west")
        assert node not in grid.get_node_ids()
        assert list(grid.push_messages([task(node)])) == [""]
        with pytest.raises(NotAdmittedError):
            connection.pull(Parcel(tmp_path / "inbox"))
        with pytest.raises(NotAdmittedError):
            connection.is_wanted(grid.run_id)
    assert "/v1/fleet/pull-messages refused to 127.0.0.1: status 401" in refusals(told)
    with pytest.raises(NotAdmittedError), place.connect(key):
        pass


def test_a_site_is_out_when_its_leave_has_expired(place: Link) -> None:
    key = new_key()
    enrol(place.folder, "east", public_pem(key.public_key()), 1, datetime.now(UTC) - timedelta(days=2))
    place.admit()
    with pytest.raises(NotAdmittedError), place.connect(key):
        pass


def test_a_key_that_was_dismissed_never_comes_back(place: Link, told: pytest.LogCaptureFixture) -> None:
    old = place.enrol("centre")
    place.revoke("centre")
    with pytest.raises(KeyFileError, match="must not have been revoked or have expired"):
        place.enrol("centre", old)
    new = place.enrol("centre")
    with pytest.raises(NotAdmittedError), place.connect(old):
        pass
    with place.connect(new):
        pass


def test_a_key_that_flower_has_dismissed_does_not_stop_the_others(
    place: Link, caplog: pytest.LogCaptureFixture
) -> None:
    """A clock that was set back, or a list of sites that was edited by hand."""
    key = place.enrol("coast")
    sites = (place.folder / "sites.json").read_text()
    place.revoke("coast")
    (place.folder / "sites.json").write_text(sites)
    other = place.enrol("hills")  # in the same pass
    assert "coast may not connect: its key was dismissed before" in caplog.text
    with pytest.raises(NotAdmittedError), place.connect(key):
        pass
    with place.connect(other):
        pass


def test_a_leave_that_is_renewed_does_not_interrupt(place: Link, tmp_path: Path) -> None:
    key = place.enrol("islands")
    with place.connect(key) as connection:
        node = place.node("islands")
        enrol(place.folder, "islands", public_pem(key.public_key()), 700)
        place.admit()
        assert place.node("islands") == node
        assert not connection.pull(Parcel(tmp_path / "inbox"))


@contextmanager
def link_process(folder: Path) -> Iterator[int]:
    """The real process that serves sites."""
    port = free_port()
    init(folder, Settings(port=port))
    command = [python(), "-m", "server.door", str(folder), str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: is_open(port))
            yield port
        finally:
            process.terminate()
            process.wait(20)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_link_hears_of_a_revocation_within_two_seconds(tmp_path: Path) -> None:
    key, folder = new_key(), tmp_path / "coordinator"
    with link_process(folder) as port:
        enrol(folder, "north", public_pem(key.public_key()), 1)
        site = Connection(f"127.0.0.1:{port}", (folder / CA_CERTIFICATE).read_bytes(), key)
        time.sleep(1.5)
        with site as connection:
            assert not connection.pull(Parcel(tmp_path / "inbox"))
            revoke(folder, "north")
            revoked = time.monotonic()
            with pytest.raises(NotAdmittedError):  # noqa: PT012
                while time.monotonic() < revoked + 10:
                    connection.pull(Parcel(tmp_path / "inbox"))
            assert time.monotonic() - revoked < 2.5
        # What cannot be read admits nobody: the process ends, and sites wait for it.
        (folder / "sites.json").write_text("damaged")
        wait_for(lambda: not is_open(port))
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    texts = [line["text"] for line in lines]
    assert "north may connect" in texts
    assert "north may no longer connect" in texts
    assert "/v1/fleet/pull-messages refused to 127.0.0.1: status 401" in texts
    assert "the enrolled sites cannot be read" in texts


# Sites that want more than what is theirs


@pytest.fixture
def exchange(place: Link, north: PrivateKey, south: PrivateKey, tmp_path: Path) -> Iterator[LinkGrid]:
    """South has been sent a message."""
    with running_grid(place.state) as grid:
        grid.push_messages([task(place.node("south"))])
        yield grid


def test_no_site_speaks_as_another(
    client: httpx.Client, place: Link, north: PrivateKey, south: PrivateKey, exchange: LinkGrid, tmp_path: Path
) -> None:
    other = Node(node_id=place.node("south"))
    inbox, outbox = Parcel(tmp_path / "inbox"), Parcel(tmp_path / "outbox")
    with place.connect(south) as connection:
        for name, request in (
            ("pull-messages", PullMessagesRequest(node=other)),
            ("send-node-heartbeat", SendNodeHeartbeatRequest(node=other, heartbeat_interval=30)),
            ("deactivate-node", DeactivateNodeRequest(node_id=other.node_id)),
            ("activate-node", ActivateNodeRequest(public_key=public_pem(south.public_key()), heartbeat_interval=30)),
            ("get-run", GetRunRequest(node=other, run_id=exchange.run_id)),
            ("push-messages", PushMessagesRequest(node=other)),
            ("pull-object", PullObjectRequest(node=other, run_id=exchange.run_id)),
            ("push-object", PushObjectRequest(node=other, run_id=exchange.run_id)),
            ("confirm-message-received", ConfirmMessageReceivedRequest(node=other, run_id=exchange.run_id)),
        ):
            assert call(client, name, request, north).status_code == 401, name
        assert other.node_id in exchange.get_node_ids()
        assert connection.pull(inbox)
        answer(inbox, outbox)
        connection.push(outbox)


def test_a_site_gets_no_part_of_anothers_message(
    client: httpx.Client, place: Link, north: PrivateKey, south: PrivateKey, exchange: LinkGrid
) -> None:
    mine, theirs = Node(node_id=place.node("north")), Node(node_id=place.node("south"))
    found = PullMessagesResponse.FromString(
        call(client, "pull-messages", PullMessagesRequest(node=theirs), south).content
    )
    run_id, parts = exchange.run_id, [part.object_id for part in iterate_object_tree(found.message_object_trees[0])]
    for part in [*parts, "", "../../etc/passwd", "%"]:
        refused = call(client, "pull-object", PullObjectRequest(node=mine, run_id=run_id, object_id=part), north)
        assert refused.status_code == 410
    refused = call(
        client,
        "confirm-message-received",
        ConfirmMessageReceivedRequest(node=mine, run_id=run_id, message_object_id=parts[-1]),
        north,
    )
    assert refused.status_code == 410
    for part in parts:
        taken = call(client, "pull-object", PullObjectRequest(node=theirs, run_id=run_id, object_id=part), south)
        assert PullObjectResponse.FromString(taken.content).object_available


def test_a_part_that_two_sites_share_is_for_both(
    client: httpx.Client, place: Link, north: PrivateKey, south: PrivateKey, tmp_path: Path
) -> None:
    with running_grid(place.state) as grid:
        ids = list(grid.push_messages([task(place.node(site)) for site in ("north", "south")]))
        for key, message_id in zip((north, south), ids, strict=True):
            with place.connect(key) as connection:
                take_part(connection, tmp_path / message_id)
            assert pulled(grid, message_id).has_content()


def test_no_site_answers_for_another(
    client: httpx.Client,
    place: Link,
    north: PrivateKey,
    south: PrivateKey,
    exchange: LinkGrid,
    tmp_path: Path,
    told: pytest.LogCaptureFixture,
) -> None:
    """Flower asks who calls, but not whether the message that is handed in is the caller's."""
    mine, theirs = Node(node_id=place.node("north")), Node(node_id=place.node("south"))
    inbox, outbox = Parcel(tmp_path / "inbox"), Parcel(tmp_path / "outbox")
    with place.connect(south) as connection:
        assert connection.pull(inbox)
        answer(inbox, outbox)
    forged, tree = outbox.message, outbox.tree
    handed = call(client, "push-messages", push(mine, forged, tree), north)
    assert handed.status_code == 403
    assert "north refused: it wanted to answer as another site" in refusals(told)
    forged.metadata.src_node_id = mine.node_id
    assert call(client, "push-messages", push(mine, forged, tree), north).status_code == 410
    accepted = call(client, "push-messages", push(theirs, outbox.message, tree), south)
    begun = PushMessagesResponse.FromString(accepted.content)
    part = begun.objects_to_push[0]
    request = PushObjectRequest(
        node=mine,
        run_id=exchange.run_id,
        session_id=begun.session_id,
        object_id=part,
        object_content=outbox.read(part),
    )
    assert call(client, "push-object", request, north).status_code == 403
    request.session_id = ""
    found = call(client, "push-object", request, north)
    assert not PushObjectResponse.FromString(found.content).stored


def push(node: Node, message: ProtoMessage, tree: ObjectTree) -> PushMessagesRequest:
    return PushMessagesRequest(
        node=node, messages_list=[message], message_object_trees=[tree], clientapp_runtime_list=[0.0]
    )


def test_what_is_no_single_answer_in_parts_is_refused(
    client: httpx.Client, place: Link, south: PrivateKey, exchange: LinkGrid, tmp_path: Path
) -> None:
    node = Node(node_id=place.node("south"))
    inbox, outbox = Parcel(tmp_path / "inbox"), Parcel(tmp_path / "outbox")
    with place.connect(south) as connection:
        assert connection.pull(inbox)
        answer(inbox, outbox)
    message, tree = outbox.message, outbox.tree
    many = ObjectTree(
        object_id=tree.object_id, children=[ObjectTree(object_id=f"{i:064x}") for i in range(PARTS_LIMIT)]
    )
    full = type(message).FromString(message.SerializeToString())
    full.content.items.add(key="x").config_record.items.add(key="y").value.string = "z"
    for request, status in (
        (PushMessagesRequest(node=node), 400),
        (PushMessagesRequest(node=node, messages_list=[message, message], message_object_trees=[tree, tree]), 400),
        (PushMessagesRequest(node=node, messages_list=[message]), 400),
        (push(node, message, tree.children[0]), 400),
        (push(node, full, tree), 400),
        (push(node, message, many), 413),
    ):
        assert call(client, "push-messages", request, south).status_code == status


# Requests that are no requests


def status_of(place: Link, line: str, *, length: int | None, headers: dict[str, str], body: bytes = b"") -> int:
    """What the server answers to bytes that no HTTP library would send."""
    lines = [line, "host: x", *(f"{name}: {value}" for name, value in headers.items())]
    if length is not None:
        lines.append(f"content-length: {length}")
    context = trusting(place.folder / CA_CERTIFICATE)
    with (
        socket.create_connection(("127.0.0.1", place.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        wrapped.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return int(wrapped.recv(4096).split(b" ")[1])


PULL = "POST /v1/fleet/pull-messages HTTP/1.1"


def test_a_body_that_is_too_large_is_refused_before_it_comes(place: Link, north: PrivateKey) -> None:
    assert status_of(place, PULL, length=REQUEST_LIMIT_BYTES + 1, headers=signed(north)) == 413
    assert status_of(place, PULL, length=10**18, headers=signed(north)) == 413
    assert status_of(place, PULL, length=10**4000, headers=signed(north)) in (400, 413)


def test_a_body_without_a_length_is_refused(place: Link, north: PrivateKey) -> None:
    assert status_of(place, PULL, length=None, headers=signed(north)) == 413
    chunked = signed(north) | {"transfer-encoding": "chunked"}
    assert status_of(place, PULL, length=None, headers=chunked, body=b"4\r\nabcd\r\n") == 413
    assert status_of(place, PULL, length=4, headers=chunked, body=b"4\r\nabcd\r\n") in (400, 413)


@pytest.mark.parametrize("packing", ["gzip", "deflate", "zstd", "br", "identity, gzip", "x"])
def test_a_packed_body_is_refused(place: Link, north: PrivateKey, packing: str) -> None:
    assert status_of(place, PULL, length=4, headers=signed(north) | {"content-encoding": packing}) == 415


def test_a_stranger_waits_for_no_answer_until_the_body_has_come(place: Link) -> None:
    """The server reads nothing of what a stranger says that it will send."""
    assert status_of(place, PULL, length=REQUEST_LIMIT_BYTES, headers=signed(new_key())) == 401


def test_headers_do_not_grow_without_bound(place: Link) -> None:
    assert status_of(place, PULL, length=0, headers={f"x-{i}": "y" * 1000 for i in range(200)}) in (400, 431)


CALLS = {
    "activate-node": ActivateNodeRequest,
    "deactivate-node": DeactivateNodeRequest,
    "send-node-heartbeat": SendNodeHeartbeatRequest,
    "get-run": GetRunRequest,
    "pull-messages": PullMessagesRequest,
    "pull-object": PullObjectRequest,
    "confirm-message-received": ConfirmMessageReceivedRequest,
    "push-messages": PushMessagesRequest,
    "push-object": PushObjectRequest,
}


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(CALLS)), body=st.binary(max_size=300))
def test_no_bytes_stop_the_server(client: httpx.Client, north: PrivateKey, name: str, body: bytes) -> None:
    assert call(client, name, body, north).status_code in (200, 400, 401)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(sorted(CALLS)))
def test_no_damage_to_a_request_stops_the_server(
    client: httpx.Client, place: Link, north: PrivateKey, name: str, data: st.DataObject
) -> None:
    """Requests of an enrolled site that were well-formed, until some of their bytes were changed."""
    node, text = Node(node_id=place.node("north")), st.text(max_size=70)
    request = CALLS[name]()
    if hasattr(request, "node"):
        request.node.CopyFrom(node)
    elif hasattr(request, "node_id"):
        request.node_id = node.node_id
    for field in request.DESCRIPTOR.fields:
        if field.name in ("run_id", "object_id", "session_id", "message_object_id", "object_content"):
            value = {
                field.TYPE_STRING: text,
                field.TYPE_BYTES: st.binary(max_size=70),
                field.TYPE_UINT64: st.integers(0, 2**64 - 1),
            }[field.type]
            setattr(request, field.name, data.draw(value, field.name))
    if isinstance(request, PushMessagesRequest):
        message = request.messages_list.add()
        metadata = message.metadata
        metadata.src_node_id, metadata.ttl = node.node_id, data.draw(st.floats())
        metadata.message_id, metadata.reply_to_message_id = data.draw(text), data.draw(text)
        request.message_object_trees.add().object_id = metadata.message_id
    body = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    status = call(client, name, bytes(body), north).status_code
    assert status in (200, 400, 401, 403, 410, 412)


def test_the_server_serves_on_after_all_this(place: Link, north: PrivateKey, tmp_path: Path) -> None:
    with running_grid(place.state) as grid, place.connect(north) as connection:
        (message_id,) = grid.push_messages([task(place.node("north"), SMALL)])
        take_part(connection, tmp_path)
        assert not is_awaited(place.state, place.node("north"), message_id, "another answer")
        assert pulled(grid, message_id).has_content()
        grid.push_messages([])  # which drops what was answered
        assert not is_awaited(place.state, place.node("north"), message_id)


# Clocks


@pytest.mark.parametrize("ahead_s", [3600, 60, -3600])
def test_a_wrong_clock_is_told_of(
    place: Link, north: PrivateKey, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    set_clock(monkeypatch, ahead_s)
    with pytest.raises(NotAdmittedError, match="this machine's clock must agree with the coordinator's") as refused:
        place.connect(north).__enter__()
    shown = re.fullmatch(r"([+-]\d+) s", str(refused.value.value))
    assert shown is not None
    asked_within_s = 20  # the answer's date is of when it was made, the comparison of when it was read
    assert abs(int(shown[1]) - ahead_s) <= asked_within_s


def test_a_clock_that_is_a_little_behind_does_not_matter(
    place: Link, north: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, -100)
    with place.connect(north):
        pass
    with pytest.raises(NotAdmittedError, match="must know the site's key"), place.connect(new_key()):
        pass


def set_clock(monkeypatch: pytest.MonkeyPatch, ahead_s: int) -> None:
    """Let the site, not the coordinator, have another time."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(seconds=ahead_s)

    monkeypatch.setattr(connections, "datetime", Clock)
    monkeypatch.setattr("flwr.supernode.node_auth_http_interceptor.now", Clock.now)
