"""What may a site ask the link? The nine of Flower's calls that it needs, each about the site's own messages only.

Who asks is known when these are called (``server/door.py``); that an answer, or a part, is the asker's own, Flower does
not ask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn

from fastapi import HTTPException
from flwr.common.constant import Status
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
from flwr.server.superlink.utils import check_abort
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import get_object_id, iterate_object_tree
from flwr.superlink.servicer.fleet import fleet_handlers

from server.link import deliver_again, deliver_no_more, is_awaited, is_part_for, site_names, uploader

PARTS_LIMIT = 20_000  # of one reply; a model has a few hundred tensors

log = logging.getLogger("server.door")  # one place tells of all that the link refuses


def _activate_node(request: ActivateNodeRequest, state: LinkState) -> ActivateNodeResponse:
    """As Flower's, but a site that was killed is let in at once: Flower's would keep it out for a minute.

    Two processes with one key would take each other's messages; a lock in the site folder prevents that.
    """
    node_id = state.get_node_id_by_public_key(request.public_key)
    if node_id is not None:
        state.deactivate_node(node_id)
        deliver_again(state, node_id)
    return fleet_handlers.activate_node(request=request, state=state)


def _deactivate_node(request: DeactivateNodeRequest, state: LinkState) -> DeactivateNodeResponse:
    return fleet_handlers.deactivate_node(request=request, state=state)


def _send_node_heartbeat(request: SendNodeHeartbeatRequest, state: LinkState) -> SendNodeHeartbeatResponse:
    return fleet_handlers.send_node_heartbeat(request=request, state=state)


def _get_run(request: GetRunRequest, state: LinkState) -> GetRunResponse:
    return fleet_handlers.get_run(request=request, state=state)


def _pull_messages(request: PullMessagesRequest, state: LinkState) -> PullMessagesResponse:
    return fleet_handlers.pull_messages(request=request, state=state, store=state.object_store)


def _pull_object(request: PullObjectRequest, state: LinkState) -> PullObjectResponse:
    """As Flower's, but a site gets parts of its own messages only."""
    if not is_part_for(state, request.node.node_id, request.object_id):
        _refuse(410, "no part of a message to this site")
    _check_running(state, request.run_id)
    content = state.get_object(request.run_id, request.object_id)
    return PullObjectResponse(
        object_found=content is not None, object_available=bool(content), object_content=content or b""
    )


def _confirm_message_received(
    request: ConfirmMessageReceivedRequest, state: LinkState
) -> ConfirmMessageReceivedResponse:
    """As Flower's, but a site confirms its own messages only."""
    if not is_awaited(state, request.node.node_id, request.message_object_id):
        _refuse(410, "no message to this site, or one that is done with")
    deliver_no_more(state, request.message_object_id)
    return fleet_handlers.confirm_message_received(request=request, state=state, store=state.object_store)


def _push_messages(request: PushMessagesRequest, state: LinkState) -> PushMessagesResponse:
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


def _push_object(request: PushObjectRequest, state: LinkState) -> PushObjectResponse:
    """As Flower's, but a site adds parts to its own replies only."""
    owner = uploader(state, request.session_id)
    if owner is None:
        return PushObjectResponse(stored=False)  # the upload was given up; the site begins it again
    if owner != request.node.node_id:
        log.warning("%s refused: it wanted to answer as another site", _name(state, request.node.node_id))
        _refuse(403, "a site answers for itself only")
    content = request.object_content  # a copy whenever it is looked at, of which Flower's handler makes four
    if get_object_id(content) != request.object_id:  # another site's answer may have a part of that name
        _refuse(400, "a part must be what its name says")
    _check_running(state, request.run_id)
    stored = state.store_object(request.run_id, request.session_id, request.object_id, content)
    return PushObjectResponse(stored=stored)


def _check_running(state: LinkState, run_id: int) -> None:
    reason = check_abort(run_id, [Status.PENDING, Status.STARTING, Status.FINISHED], state)
    if reason is not None:
        raise FlowerError(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, reason)


def _refuse(status: int, reason: str) -> NoReturn:
    raise HTTPException(status, reason)


def _name(state: LinkState, node_id: int) -> str:
    return site_names(state).get(node_id, "a site that was dismissed")


PULL_MESSAGES = "/v1/fleet/pull-messages"
CALLS: dict[str, Callable[[Any, LinkState], Any]] = {  # Flower's request in, its response out
    "/v1/fleet/activate-node": _activate_node,
    "/v1/fleet/deactivate-node": _deactivate_node,
    "/v1/fleet/send-node-heartbeat": _send_node_heartbeat,
    "/v1/fleet/get-run": _get_run,
    PULL_MESSAGES: _pull_messages,
    "/v1/fleet/pull-object": _pull_object,
    "/v1/fleet/confirm-message-received": _confirm_message_received,
    "/v1/fleet/push-messages": _push_messages,
    "/v1/fleet/push-object": _push_object,
}
