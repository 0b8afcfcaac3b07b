"""How does a site speak with the coordinator? As a Flower SuperNode that never takes code: messages in, replies out.

Flower's own SuperNode pulls the coordinator's program with the first message, hands it to a process and runs it. This
one has no way to pull a program. It holds the internals of Flower that this needs; ``tests/client/test_connection.py``
tells when an upgrade breaks them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import httpx
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError, pull_objects
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.parcels import Parcel
from shared.errors import FedretinaError, MessageError
from shared.keys import PrivateKey, public_pem

_HEARTBEAT_S = 15.0  # half of Flower's patience for what we announce below
_ANNOUNCED_HEARTBEAT_S = 30.0
_PART_S = 30.0  # patience with a part of a message that the coordinator has not written yet
_REASON_LENGTH = 500  # of what the coordinator says; more is not Flower's
_EARLY_S, _LATE_S = 5.0, 300.0  # Flower refuses requests that seem to come from further away in time

log = logging.getLogger(__name__)
T = TypeVar("T")


class UnreachableError(FedretinaError):
    """The coordinator cannot be reached now; trying again may help."""


class NotAdmittedError(FedretinaError):
    """The coordinator does not know this site's key, or no longer."""


class RunEndedError(FedretinaError):
    """What the site works on is no longer wanted."""


class Connection:
    """A site's connection; ``with`` it, heartbeats are sent.

    Args:
        address: host:port of the coordinator.
        authority: PEM of the certificate authority that the coordinator's certificate must be of.
        key: of the site.
    """

    def __init__(self, address: str, authority: bytes, key: PrivateKey) -> None:
        self._address, self._public = address, public_pem(key.public_key())
        signing = NodeAuthHttpInterceptor(key, key.public_key())
        self._client = FleetHttpClient.from_server_address(address, False, authority, interceptors=[signing])
        self._node = Node()
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=_ANNOUNCED_HEARTBEAT_S)
        try:
            self._node = Node(node_id=self._call(lambda: self._client.ActivateNode(request)).node_id)
        except BaseException:
            self._client.close()
            raise
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.set()
        self._heart.join()
        try:
            self._call(lambda: self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id)))
        except FedretinaError as problem:
            log.debug("%s", problem)
        self._client.close()

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=_ANNOUNCED_HEARTBEAT_S)
        while not self._closed.wait(_HEARTBEAT_S):
            try:
                self._call(lambda: self._client.SendNodeHeartbeat(request))
            except FedretinaError as problem:
                log.debug("%s", problem)  # whoever pulls hears of it

    def pull(self, inbox: Parcel) -> bool:
        """Put the next message into the inbox, unless there is none.

        Raises:
            UnreachableError, NotAdmittedError, RunEndedError.
            MessageError: what the coordinator sent is no message.
        """
        found = self._call(lambda: self._client.PullMessages(PullMessagesRequest(node=self._node)))
        if not found.messages_list:
            return False
        if not len(found.messages_list) == len(found.message_object_trees) == 1:
            raise MessageError("message", "must come alone, with the names of its parts")
        message, tree = found.messages_list[0], found.message_object_trees[0]
        if message.metadata.message_id != tree.object_id:
            raise MessageError("message", "must be the root of its parts")
        run_id = message.metadata.run_id
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._node, run_id)
        draft = inbox.draft(message, tree)
        try:
            for part in {part.object_id for part in iterate_object_tree(tree)}:
                draft.put(part, self._call(lambda part=part: pull_objects([part], pull, max_time=_PART_S)[part]))  # type: ignore[misc]
        except ObjectPullError as error:
            raise UnreachableError(self._address, "must send whole messages", value=str(error)[:80]) from None
        draft.commit()
        self.confirm(inbox)
        return True

    def confirm(self, inbox: Parcel) -> None:
        """Tell the coordinator that the inbox holds the message, whose copy it may then delete."""
        confirm = make_confirm_message_received_fn_protobuf(
            self._client.ConfirmMessageReceived, self._node, inbox.run_id
        )
        self._call(lambda: confirm(inbox.message_id))

    def push(self, outbox: Parcel) -> None:
        """Send the reply in the outbox; what an interrupted attempt has sent is not sent again.

        Raises:
            UnreachableError, NotAdmittedError, RunEndedError.
            MessageError: the coordinator takes no such reply.
        """
        request = PushMessagesRequest(
            node=self._node,
            messages_list=[outbox.message],
            message_object_trees=[outbox.tree],
            clientapp_runtime_list=[0.0],
        )
        answer = self._call(lambda: self._client.PushMessages(request))
        push = make_push_object_fn_protobuf(self._client.PushObject, self._node, outbox.run_id, answer.session_id)
        for part in dict.fromkeys(answer.objects_to_push):  # two arrays may have a piece in common
            try:
                self._call(partial(push, part, outbox.read(part)))
            except ObjectPushError as error:
                raise UnreachableError(self._address, "must take whole messages", value=str(error)[:80]) from None

    def is_wanted(self, run_id: int) -> bool:
        """Does the run go on for which the site works?"""
        try:
            self._call(lambda: self._client.GetRun(GetRunRequest(node=self._node, run_id=run_id)))
        except RunEndedError:
            return False
        return True

    def _call(self, do: Callable[[], T]) -> T:
        try:
            return do()
        except httpx.HTTPStatusError as error:
            raise self._explain(error.response) from None
        except (httpx.HTTPError, OSError, ValueError) as error:  # ValueError: Flower's, for an answer that is none
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                rule, remedy = "must show the certificate that the kit tells of", "Ask the coordinator for a new kit."
                raise UnreachableError(self._address, rule, remedy=remedy) from None
            raise UnreachableError(self._address, "must be reachable", value=type(error).__name__) from None

    def _explain(self, response: httpx.Response) -> FedretinaError:
        said = response.text[:_REASON_LENGTH]
        flower = FlowerError.from_json(said if said.startswith("{") else None)
        if response.status_code == httpx.codes.GONE:
            return RunEndedError("answer", "must still be awaited")
        if response.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.REQUEST_ENTITY_TOO_LARGE):
            return MessageError("answer", "must be one that the coordinator takes", value=said[:80])
        if flower is not None and flower.code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
            return RunEndedError("run", "must be running")
        if flower is not None and flower.code == ApiErrorCode.FLEET_GET_RUN_FAILED:
            return RunEndedError("run", "must be of this coordinator")
        if response.status_code == httpx.codes.UNAUTHORIZED or (
            flower is not None and flower.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED
        ):
            skew = _clock_skew_s(response)
            if not -_LATE_S <= skew <= _EARLY_S:
                remedy = "Set the clock; a time service such as chrony keeps it."
                return NotAdmittedError(
                    "this machine's clock", "must agree with the coordinator's", value=f"{skew:+.0f} s", remedy=remedy
                )
            remedy = "Ask the coordinator whether the site is enrolled, and not revoked or expired."
            return NotAdmittedError(self._address, "must know the site's key", remedy=remedy)
        return UnreachableError(self._address, "must answer", value=f"HTTP {response.status_code}")


def _clock_skew_s(response: httpx.Response) -> float:
    """By how much this machine's clock is ahead."""
    try:
        return (datetime.now(UTC) - parsedate_to_datetime(response.headers["date"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return 0.0
