"""How does a study send messages to sites over the network? A Flower grid on the database that the SuperLink serves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID, SubStatus
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate import LinkState
from flwr.serverapp import Grid
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from server.link import FEDERATION, drop_messages, drop_runs, parts_of, replies_to
from shared.errors import FedretinaError, MessageError
from shared.messages import FAILED_AT_SITE, size_of
from shared.parts import assemble

_HEARTBEAT_S = 10.0
_REPLY_FACTOR, _REPLY_BYTES = 4, 64 * 2**20  # a reply may be as many times as large as what it answers, and this more

log = logging.getLogger(__name__)


class RunEndedError(FedretinaError):
    """Flower's run ended while the study went on: it was stopped, or stood still for too long."""


class LinkGrid(Grid):
    """The sites that are connected to the SuperLink; replies come back one at a time, so that memory holds one.

    Args:
        state: of the SuperLink.
        run_id: of a run that is running.
    """

    def __init__(self, state: LinkState, run_id: int) -> None:
        self.state, self.run_id = state, run_id
        self._limits: dict[str, int] = {}  # bytes of a reply, by the message that it answers
        self._answered: list[str] = []  # messages that are to be dropped, with their replies
        # Flower's messages read the sender from here.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SUPERLINK_NODE_ID

    @property
    def run(self) -> Run:
        """Flower's record of the run."""
        return self.state.get_run_info(run_ids=[self.run_id])[0]

    def set_run(self, run: Run) -> None:
        """There is one run only."""

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are connected now."""
        return sorted(self.state.get_nodes(self.run_id))

    def get_nodes(self) -> Iterable[NodeInfo]:
        """What Flower knows of the connected nodes."""
        return list(self.state.get_node_info(node_ids=list(self.get_node_ids())))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Give messages to the SuperLink; an empty id for one to a node that may not connect or never did.

        Only then are the answered ones dropped: sites need not wait for it.

        Raises:
            RunEndedError: the run is not running.
        """
        with no_object_id_recompute():  # what several messages hold is hashed once
            ids = [self._push(message) for message in messages]
        self.forget(self._answered)
        self._answered = []
        return ids

    def _push(self, message: Message) -> str:
        if not self.is_running():
            raise RunEndedError(f"run {self.run_id}", "must be running", remedy="Go on with the study by a new run.")
        message.metadata.__dict__["_message_id"] = message.object_id
        message_id = message.metadata.message_id
        session = self.state.start_session(self.run_id)
        bare, tree = remove_content_from_message(message), get_object_tree(message)
        stored, missing = self.state.store_message_and_object_tree(bare, tree, session)
        if not stored:
            return ""
        objects = get_all_nested_objects(message)
        for object_id in missing:
            self.state.store_object(self.run_id, session, object_id, objects[object_id].deflate())
        self._limits[message_id] = _REPLY_FACTOR * size_of(message.content) + _REPLY_BYTES
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The first of the replies that is there as a whole.

        A node that is not connected is not taken for lost, as Flower's own grids do after a minute: it may be
        restarting, and the caller's deadline bounds the wait. What is no message comes as an error that says so.
        """
        for message_id, reply in replies_to(self.state, set(message_ids).difference(self._answered)).items():
            whole = self._complete(message_id, reply)
            if whole is not None:
                self._answered.append(message_id)
                return [whole]
        return []

    def _complete(self, message_id: str, reply: Message) -> Message | None:
        """The reply with its content, or None while parts of it are still coming."""
        if reply.has_error():
            return reply
        sizes = parts_of(self.state, reply.metadata.message_id)
        missing = [part for part, size in sizes.items() if size is None]
        if missing or not sizes:
            for part in missing[:1]:
                self.state.get_object(
                    self.run_id, part
                )  # gives up an upload that has stood still; the site sends it again
            return None
        limit, size = self._limits.get(message_id, _REPLY_BYTES), sum(size or 0 for size in sizes.values())
        try:
            if size > limit:
                raise MessageError("reply", f"must be of at most {limit} bytes", value=size)
            return assemble(reply, {part: self.state.get_object(self.run_id, part) or b"" for part in sizes}, limit)
        except MessageError as error:
            return make_message(metadata=reply.metadata, error=Error(FAILED_AT_SITE, str(error)))

    def forget(self, message_ids: Iterable[str]) -> None:
        """Drop messages with their replies, whether they came or not; a reply that comes later is refused."""
        dropped = list(message_ids)
        for message_id in dropped:
            self._limits.pop(message_id, None)
        drop_messages(self.state, dropped)

    def is_running(self) -> bool:
        """Does Flower hold the run for running?"""
        return self.state.get_run_status({self.run_id})[self.run_id].status == "running"

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not used: ``server.study`` waits with a bound of its own."""
        raise NotImplementedError


def end_runs(state: LinkState) -> None:
    """Stop every run, with its messages: sites see it and end what they do for it."""
    runs = [run.run_id for run in state.get_run_info()]
    for run_id in runs:
        state.stop_run(run_id)
    drop_runs(state, runs)  # also of a run that ended because its process was killed


@contextmanager
def running_grid(state: LinkState) -> Iterator[LinkGrid]:
    """A grid with a run of its own, which ends with the block; earlier runs are ended first."""
    end_runs(state)
    run_id = state.create_run(None, None, None, {}, FEDERATION, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
    task_id = state.get_run_info(run_ids=[run_id])[0].primary_task_id
    assert task_id is not None
    state.claim_task(task_id)
    state.activate_task(task_id)
    ended = threading.Event()

    def beat() -> None:
        alive = True
        while alive and not ended.wait(_HEARTBEAT_S):
            try:
                alive = state.acknowledge_task_heartbeat(task_id)
            except Exception:  # the disk may be full, or busy, for a moment
                log.exception("the heartbeat of run %d failed", run_id)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield LinkGrid(state, run_id)
        state.finish_task(task_id, SubStatus.COMPLETED, "")
        drop_runs(state, [run_id])
    except BaseException:
        state.stop_run(run_id)
        drop_runs(state, [run_id])
        raise
    finally:
        ended.set()
        thread.join()
