"""Who may ask the link for what? The sites' side of Flower's SuperLink, behind a door that knows the enrolled keys.

Flower serves three interfaces on one port and has accounts for none of them: whoever reaches the port could list nodes,
start runs and execute them. Here exist only the nine calls that a site needs. A request is looked at in this order: its
address, its key, its size (the door, before anything of it is read), its signature (Flower), and whether it speaks of
the site's own messages, which Flower does not ask.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, NoReturn

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.routing import ProtobufRoute
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_DEPENDENCY, ProtobufTranslationMiddleware
from flwr.superlink.dependencies.linkstate import get_linkstate
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.servicer.fleet import fleet_handlers
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from server.certificates import SERVER_CERTIFICATE, SERVER_KEY
from server.coordinator import DATABASE, LOG, read_settings
from server.enrolment import valid_enrolments
from server.link import (
    admit,
    deliver_again,
    deliver_no_more,
    is_awaited,
    is_part_for,
    open_link_state,
    site_names,
    uploader,
)
from server.waiting import Waiting
from shared.logs import log_to, quiet_flower
from shared.memory import keep_freed
from shared.processes import end_with_parent

REQUEST_LIMIT_BYTES = 16 * 2**20  # the largest piece that a site or Flower sends, with room
PARTS_LIMIT = 20_000  # of one reply; a model has a few hundred tensors
_ENROLMENTS_S = 1.0
_HOLD_S = 2.0  # for which a site's question for a task waits
_REFUSALS = (400, 401, 404, 405, 413, 415)  # what a site in good order never gets

log = logging.getLogger("server.door")  # also where this is the main module
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
State = Annotated[LinkState, Depends(get_linkstate)]

_calls = APIRouter(prefix="/v1/fleet", route_class=ProtobufRoute)


@_calls.post("/activate-node")
def _activate_node(
    request: Annotated[ActivateNodeRequest, PROTOBUF_REQUEST_DEPENDENCY], state: State
) -> ActivateNodeResponse:
    """As Flower's, but a site that was killed is let in at once: Flower's would keep it out for a minute.

    Two processes with one key would take each other's messages; a lock in the site folder prevents that.
    """
    node_id = state.get_node_id_by_public_key(request.public_key)
    if node_id is not None:
        state.deactivate_node(node_id)
        deliver_again(state, node_id)
    return fleet_handlers.activate_node(request=request, state=state)


@_calls.post("/deactivate-node")
def _deactivate_node(
    request: Annotated[DeactivateNodeRequest, PROTOBUF_REQUEST_DEPENDENCY], state: State
) -> DeactivateNodeResponse:
    return fleet_handlers.deactivate_node(request=request, state=state)


@_calls.post("/send-node-heartbeat")
def _send_node_heartbeat(
    request: Annotated[SendNodeHeartbeatRequest, PROTOBUF_REQUEST_DEPENDENCY], state: State
) -> SendNodeHeartbeatResponse:
    return fleet_handlers.send_node_heartbeat(request=request, state=state)


@_calls.post("/get-run")
def _get_run(request: Annotated[GetRunRequest, PROTOBUF_REQUEST_DEPENDENCY], state: State) -> GetRunResponse:
    return fleet_handlers.get_run(request=request, state=state)


async def _waiting(request: Request) -> Waiting:
    waiting: Waiting = request.app.state.waiting
    return waiting


@_calls.post("/pull-messages")
async def _pull_messages(
    request: Annotated[PullMessagesRequest, PROTOBUF_REQUEST_DEPENDENCY],
    state: State,
    waiting: Annotated[Waiting, Depends(_waiting)],
) -> PullMessagesResponse:
    """As Flower's, but the answer waits for a message."""
    if not await waiting.for_task(request.node.node_id):
        return PullMessagesResponse()
    return await run_in_threadpool(fleet_handlers.pull_messages, request=request, state=state, store=state.object_store)


@_calls.post("/pull-object")
def _pull_object(
    request: Annotated[PullObjectRequest, PROTOBUF_REQUEST_DEPENDENCY], state: State
) -> PullObjectResponse:
    """As Flower's, but a site gets parts of its own messages only."""
    if not is_part_for(state, request.node.node_id, request.object_id):
        _refuse(410, "no part of a message to this site")
    return fleet_handlers.pull_object(request=request, state=state)


@_calls.post("/confirm-message-received")
def _confirm_message_received(
    request: Annotated[ConfirmMessageReceivedRequest, PROTOBUF_REQUEST_DEPENDENCY], state: State
) -> ConfirmMessageReceivedResponse:
    """As Flower's, but a site confirms its own messages only."""
    if not is_awaited(state, request.node.node_id, request.message_object_id):
        _refuse(410, "no message to this site, or one that is done with")
    deliver_no_more(state, request.message_object_id)
    return fleet_handlers.confirm_message_received(request=request, state=state, store=state.object_store)


@_calls.post("/push-messages")
def _push_messages(
    request: Annotated[PushMessagesRequest, PROTOBUF_REQUEST_DEPENDENCY], state: State
) -> PushMessagesResponse:
    """As Flower's, but a site answers for itself only, and hears when its answer is not awaited any more."""
    node_id = request.node.node_id
    if not len(request.messages_list) == len(request.message_object_trees) == 1:
        _refuse(400, "one message at a time")
    metadata, tree = request.messages_list[0].metadata, request.message_object_trees[0]
    if metadata.src_node_id != node_id:
        log.warning("%s refused: it wanted to answer as another site", _name(state, node_id))
        _refuse(403, "a site answers for itself only")
    if tree.object_id != metadata.message_id or request.messages_list[0].content.ByteSize():
        _refuse(400, "the content comes in parts, of which the message is the root")
    if sum(1 for _ in iterate_object_tree(tree)) > PARTS_LIMIT:
        _refuse(413, "too many parts")
    if not is_awaited(state, node_id, metadata.reply_to_message_id, metadata.message_id):
        log.info("late answer of %s discarded", _name(state, node_id))
        _refuse(410, "this answer is not awaited, or no longer")
    try:
        return fleet_handlers.push_messages(request=request, state=state)
    except ValueError:  # Flower's, for names of parts that are none
        _refuse(400, "the parts are not named as they must be")


@_calls.post("/push-object")
def _push_object(
    request: Annotated[PushObjectRequest, PROTOBUF_REQUEST_DEPENDENCY], state: State
) -> PushObjectResponse:
    """As Flower's, but a site adds parts to its own replies only."""
    owner = uploader(state, request.session_id)
    if owner is None:
        return PushObjectResponse(stored=False)  # the upload was given up; the site begins it again
    if owner != request.node.node_id:
        log.warning("%s refused: it wanted to answer as another site", _name(state, request.node.node_id))
        _refuse(403, "a site answers for itself only")
    return fleet_handlers.push_object(request=request, state=state)


def _refuse(status: int, reason: str) -> NoReturn:
    raise HTTPException(status, reason)


def _name(state: LinkState, node_id: int) -> str:
    return site_names(state).get(node_id, "a site that was dismissed")


def fleet_app(state: LinkState, waiting: Waiting) -> App:
    """The sites' side of Flower's SuperLink, as an ASGI application."""
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
        ],
    )
    app.state.linkstate_factory = SimpleNamespace(state=lambda: state)
    app.state.waiting = waiting
    app.include_router(_calls)
    return _Door(app, state)


class _Door:
    """Refuses strangers, and what is too large or packed, before anything is read; logs whoever is refused."""

    def __init__(self, app: App, state: LinkState) -> None:
        self._app, self._state = app, state
        self._paths = {route.path for route in _calls.routes if isinstance(route, ProtobufRoute)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        address = (scope.get("client") or ("?",))[0]

        async def send_and_log(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] in _REFUSALS:
                log.warning("%s refused to %s: status %d", scope["path"][:100], address, message["status"])
            await send(message)

        status = await self._refusal(scope)
        if status is None:
            body = await _read_whole(receive)
            if body is not None:
                await self._app(scope, _at_once(body, receive), send_and_log)
        else:
            await send_and_log(
                {"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]}
            )
            await send_and_log({"type": "http.response.body", "body": b""})

    async def _refusal(self, scope: Scope) -> int | None:
        headers = dict(scope["headers"])
        if scope["path"] not in self._paths:
            return 404
        if scope["method"] != "POST":
            return 405
        if not await run_in_threadpool(self._is_enrolled, headers.get(FLEET_HTTP_PUBLIC_KEY_HEADER.encode(), b"")):
            return 401
        # Without a length, or packed, a request could grow without bound while it is read.
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or int(length[:20]) > REQUEST_LIMIT_BYTES or b"transfer-encoding" in headers:
            return 413
        if headers.get(b"content-encoding", b"identity") != b"identity":
            return 415
        return None

    def _is_enrolled(self, header: bytes) -> bool:
        try:
            return self._state.get_node_id_by_public_key(b64decode(header, validate=True)) is not None
        except ValueError:
            return False


async def _read_whole(receive: Receive) -> bytes | None:
    """The body of a request, whose length the door has bounded; None when the sender is gone.

    What lies behind the door makes tasks for every 64 KiB that it is given, which costs more than all else.
    """
    pieces = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _at_once(body: bytes, receive: Receive) -> Receive:
    rest: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_next() -> MutableMapping[str, Any]:
        return rest.pop() if rest else await receive()

    return receive_next


def watch_enrolments(folder: Path, state: LinkState) -> None:
    """Admit and dismiss sites as they are enrolled and revoked, and as their leave expires; never returns.

    What keeps it from that ends the process: sites that wait are better than one that stays after it was dismissed.
    """
    try:
        while True:
            admit(state, valid_enrolments(folder))
            time.sleep(_ENROLMENTS_S)
    except BaseException:
        log.exception("the enrolled sites cannot be read")
        os._exit(1)


def main() -> None:
    """``python -m server.door FOLDER PARENT``: serve the sites of a coordinator, a child of it, until told to stop."""
    folder = Path(sys.argv[1])
    keep_freed()
    end_with_parent(int(sys.argv[2]))
    log_to(folder / LOG)
    quiet_flower()
    settings, state = read_settings(folder), open_link_state(folder / DATABASE)
    admit(state, valid_enrolments(folder))
    threading.Thread(target=watch_enrolments, args=(folder, state), name="enrolments", daemon=True).start()
    certificate, key = folder / SERVER_CERTIFICATE, folder / SERVER_KEY
    log.info("sites may connect to %s:%d", settings.host, settings.port)
    waiting = Waiting(folder / DATABASE, _HOLD_S)
    server = build_server(fleet_app(state, waiting), settings.host, settings.port, certificate, key)
    waiting.is_ending = lambda: server.should_exit
    server.run()


def build_server(app: App, host: str, port: int, certificate: Path, key: Path) -> uvicorn.Server:
    """A TLS server for the application; ``run`` serves until told to stop."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            http="h11",  # which bounds the headers that it takes
            ws="none",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=75,
        )
    )


if __name__ == "__main__":
    main()
