"""How does a federation run inside one process? A Flower grid that hands messages to client apps directly.

This file holds the internals of Flower that an in-process grid needs (``TaskIdentity``, ``Run``, a message's id);
``tests/simulation/test_grid.py`` tells when an upgrade breaks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.app import SITE, build_app
from shared.errors import ConfigError

_RUN_ID, _SERVER_NODE = 1, 1


class LocalGrid(Grid):
    """Sites of one machine, one node each; a reply is made when it is pulled, one at a time.

    Args:
        sites: site folders; node ids follow their order.
    """

    def __init__(self, sites: Sequence[Path]) -> None:
        if TaskIdentity._run_id is None:  # Flower's own engine has set it where that runs, and needs it kept
            TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, _SERVER_NODE
        self._app: ClientApp = build_app()
        self._contexts = {
            node: Context(_RUN_ID, node, {SITE: str(site)}, RecordDict(), {})
            for node, site in enumerate(sites, start=_SERVER_NODE + 1)
        }
        self._waiting: dict[str, Message] = {}
        self._sent = 0

    @property
    def run(self) -> Run:
        """A run with an identity and nothing else."""
        return Run.create_empty(_RUN_ID)

    def set_run(self, run: Run) -> None:
        """There is one run only."""

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Every site's node."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their replies are pulled."""
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self._contexts:
                raise ConfigError("message to node", "must be a node of the grid", value=message.metadata.dst_node_id)
            self._sent += 1
            message_id = message.metadata.__dict__["_message_id"] = str(self._sent)  # as Flower's own grids do
            self._waiting[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The reply to the first of these messages that waits; the next call makes the next."""
        for message_id in message_ids:
            message = self._waiting.pop(message_id, None)
            if message is not None:
                return [self._app(message, self._contexts[message.metadata.dst_node_id])]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """All replies, in order; work in this process cannot time out."""
        return [reply for message_id in self.push_messages(messages) for reply in self.pull_messages([message_id])]
