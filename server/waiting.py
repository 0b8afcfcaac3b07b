"""How does a site hear of a task as soon as it is there? Its question for one is answered late, within a bound.

Sites that asked again and again would take more of the link than their messages do. What Flower writes of messages is
read here, in a connection of its own that never writes; ``tests/server/test_waiting.py`` tells when an upgrade breaks
that.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from flwr.supercore.utils import uint64_to_int64

_LOOK_S = 0.05
# What is on its way into the database is not there yet.
_QUERY = """
SELECT DISTINCT dst_node_id FROM message_ins WHERE delivered_at = ''
AND message_id NOT IN (SELECT root_object_id FROM object_push_session_roots)
"""


class Waiting:
    """The questions of sites for which there is no task yet.

    Args:
        database: of the SuperLink.
        hold_s: for which a question waits at most, and so a site that is stopped.

    Attributes:
        is_ending: tells when all are to be answered at once.
    """

    def __init__(self, database: Path, hold_s: float) -> None:
        self._hold_s = hold_s
        self.is_ending: Callable[[], bool] = lambda: False
        # Opened by whoever makes the server, used by its event loop alone.
        self._connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        self._looked, self._version = 0.0, -1
        self._nodes: set[int] = set()

    def close(self) -> None:
        """Look no more."""
        self._connection.close()

    async def for_task(self, node_id: int) -> bool:
        """Return as soon as there is a message to a node that it has not got yet; False when none came in time."""
        until = time.monotonic() + self._hold_s
        while not (there := self._is_there(node_id)) and time.monotonic() < until and not self.is_ending():
            await asyncio.sleep(_LOOK_S)
        return there

    def _is_there(self, node_id: int) -> bool:
        """Whatever the number of sites, the database is looked at once in a while, and read when it has changed."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_S / 2:
            self._looked = now
            ((version,),) = self._connection.execute("PRAGMA data_version")
            if version != self._version:
                self._version = version
                self._nodes = {node for (node,) in self._connection.execute(_QUERY)}
        return uint64_to_int64(node_id) in self._nodes
