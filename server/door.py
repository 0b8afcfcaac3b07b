"""Who may ask the link? The sites' side of Flower's SuperLink, behind a door that knows the enrolled keys.

Flower serves three interfaces on one port and has accounts for none of them: whoever reaches the port could list nodes,
start runs and execute them. Here exist only the nine calls that a site needs (``server/calls.py``). A request is looked
at in this order: its address, its key and its size before anything of it is read, then its signature, as Flower does,
and at last whether it speaks of the site's own messages.

Flower's own application goes through three layers for each request that make tasks of their own; this one is one.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
from fastapi import HTTPException, Request, Response
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.error import http_error_translator
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from server.calls import CALLS, PULL_MESSAGES
from server.certificates import SERVER_CERTIFICATE, SERVER_KEY
from server.coordinator import DATABASE, LOG, read_settings
from server.enrolment import valid_enrolments
from server.link import admit, open_link_state
from server.waiting import Waiting
from shared.logs import log_to, quiet_flower
from shared.memory import keep_freed
from shared.processes import end_with_parent

REQUEST_LIMIT_BYTES = 16 * 2**20  # the largest piece that a site or Flower sends, with room
_ENROLMENTS_S = 1.0
_HOLD_S = 2.0  # for which a site's question for a task waits
_REFUSALS = (400, 401, 404, 405, 413, 415)  # what a site in good order never gets

log = logging.getLogger("server.door")  # also where this is the main module
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Door:
    """The sites' side of Flower's SuperLink, as an ASGI application; logs whoever is refused."""

    def __init__(self, state: LinkState, waiting: Waiting) -> None:
        self._link, self._waiting = state, waiting
        self._seen: dict[bytes, float] = {}  # when a key was last found among the enrolled
        # Where Flower's authentication looks for the link's state.
        self.state = SimpleNamespace(linkstate_factory=SimpleNamespace(state=lambda: state))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope["app"] = self
        request = Request(scope, receive)
        status = await self._refusal(request)
        if status is None:
            try:
                body = await request.body()
            except ClientDisconnect:
                return
            response = await http_error_translator(request, partial(self._respond, body))
        else:
            response = Response(status_code=status)
        if response.status_code in _REFUSALS:
            address = (scope.get("client") or ("?",))[0]
            log.warning("%s refused to %s: status %d", request.scope["path"][:100], address, response.status_code)
        await response(scope, receive, send)

    async def _refusal(self, request: Request) -> int | None:
        """The status that refuses a request unread."""
        headers = request.headers
        if request.scope["path"] not in CALLS:
            return 404
        if request.method != "POST":
            return 405
        if not await self._is_enrolled(headers.get(FLEET_HTTP_PUBLIC_KEY_HEADER, "")):
            return 401
        # Without a length, or packed, a request could grow without bound while it is read.
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()) or int(length[:20]) > REQUEST_LIMIT_BYTES:
            return 413
        if "transfer-encoding" in headers:
            return 413
        is_plain = headers.get("content-encoding", "identity") == "identity"
        return None if is_plain and headers.get("content-type") == PROTOBUF_MEDIA_TYPE else 415

    async def _is_enrolled(self, header: str) -> bool:
        try:
            key = b64decode(header, validate=True)
        except ValueError:
            return False
        seen = self._seen.get(key)
        if seen is not None and time.monotonic() - seen < _ENROLMENTS_S:
            return True
        if await run_in_threadpool(self._link.get_node_id_by_public_key, key) is None:
            self._seen.pop(key, None)
            return False
        self._seen[key] = time.monotonic()
        return True

    async def _respond(self, body: bytes, request: Request) -> Response:
        message = PROTOBUF_REQUEST_TYPES["POST", request.scope["path"]]()
        try:
            message.ParseFromString(body)
        except DecodeError:
            raise HTTPException(400, "not a message of Flower's") from None
        request.state.protobuf_request = message  # where Flower's authentication looks for it
        if request.scope["path"] == PULL_MESSAGES:  # the answer waits for a message
            await run_in_threadpool(authenticate_node, request)
            if not await self._waiting.for_task(message.node.node_id):
                return Response(media_type=PROTOBUF_MEDIA_TYPE)
        answer = await run_in_threadpool(self._call, request, message)
        return Response(answer, media_type=PROTOBUF_MEDIA_TYPE)

    def _call(self, request: Request, message: Any) -> bytes:
        authenticate_node(request)
        answer: bytes = CALLS[request.scope["path"]](message, self._link).SerializeToString()
        return answer


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
    server = build_server(Door(state, waiting), settings.host, settings.port, certificate, key)
    waiting.is_ending = lambda: server.should_exit
    server.run()


def build_server(app: Door, host: str, port: int, certificate: Path, key: Path) -> uvicorn.Server:
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
            lifespan="off",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=75,
        )
    )


if __name__ == "__main__":
    main()
