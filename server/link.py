"""What does the coordinator know of sites and messages? Flower's SuperLink state, a database that its processes share.

The study's process writes messages into it and reads replies (``server/grid.py``); the link's process serves it to the
sites (``server/door.py``, ``server/calls.py``); parts of messages lie beside it (``server/parts.py``). These five files
hold the internals of Flower that the coordinator needs; ``tests/server/test_link.py`` tells when an upgrade breaks
them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
import warnings
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from flwr.app import Message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState, _message_model_to_dict
from flwr.server.superlink.linkstate.utils import convert_sint64_values_in_dict_to_uint64, dict_to_message
from flwr.supercore import sql_mixin
from flwr.supercore.constant import NOOP_FEDERATION_ID, SQLITE_PRAGMAS
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.state.alembic.utils import run_migrations
from flwr.supercore.state.schema.corestate_models import ObjectPushSessionRoot
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.state.schema.objectstore_models import ObjectChild, StoredObject
from flwr.supercore.utils import int64_to_uint64, uint64_to_int64
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from sqlalchemy import Engine, literal, select, update

from server.enrolment import Enrolment
from server.parts import PartFiles

FEDERATION = NOOP_FEDERATION_ID  # Flower's name for the one federation of a SuperLink without accounts
_PRAGMAS = {
    "busy_timeout": "60000",  # Flower waits 5 s for another process's write, less than a slow disk may take
}
_LAYOUT = zlib.crc32(version("flwr").encode()) >> 1  # a positive number of 32 bits, which SQLite keeps with a database
_LOOK_S = 1.0

log = logging.getLogger(__name__)


def open_link_state(database: Path) -> LinkState:
    """Flower's state of nodes, runs and messages, in a file that several processes of one user share."""
    vars(sql_mixin)["SQLITE_PRAGMAS"] = tuple((_PRAGMAS | dict(SQLITE_PRAGMAS) | _PRAGMAS).items())
    vars(sql_mixin)["run_migrations"] = _lay_out
    if not database.exists():
        database.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(database, os.O_CREAT | os.O_WRONLY, 0o600))
    with database.with_suffix(".lock").open("a") as stream, warnings.catch_warnings(action="ignore"):
        # Flower's way of laying out the tables is deprecated, and must not be gone by two processes at once.
        fcntl.flock(stream, fcntl.LOCK_EX)
        parts = ObjectStoreFactory(str(database))
        parts.store_instance = PartFiles(database)
        parts.store_instance.initialize()
        state = LinkStateFactory(str(database), NoOpFederationManager(), parts).state()
    _write_seldom(_sql(state))
    return state


def _lay_out(engine: Engine) -> None:
    """Bring the tables up to date, once for each version of Flower.

    Flower goes through all that it ever changed in them, twice whenever a state is opened, to find that nothing is to
    be done: half a second, for which the sites wait when a process is started again.
    """
    with engine.connect() as connection:
        if connection.exec_driver_sql("PRAGMA user_version").scalar() == _LAYOUT:
            return
    run_migrations(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"PRAGMA user_version = {_LAYOUT}")


def _write_seldom(state: SqlLinkState) -> None:
    """With every part Flower counts bytes and looks for stopped runs; these writes wait for those of the parts."""
    look, due = state._cleanup_expired_task_tokens, [0.0]

    def look_when_due() -> None:
        if time.monotonic() >= due[0]:
            look()
            due[0] = time.monotonic() + _LOOK_S

    vars(state)["_cleanup_expired_task_tokens"] = look_when_due
    vars(state)["store_traffic"] = lambda run_id, *, bytes_sent, bytes_recv: None


def _sql(state: LinkState) -> SqlLinkState:
    assert isinstance(state, SqlLinkState)
    return state


def _files(state: LinkState) -> PartFiles:
    assert isinstance(state.object_store, PartFiles)
    return state.object_store


# Sites


def admit(state: LinkState, enrolments: Iterable[Enrolment]) -> None:
    """Make the nodes that may connect just those of the enrolments: a key that is not among them gets nothing."""
    wanted = {enrolment.public_key.encode(): enrolment.site for enrolment in enrolments}
    present = {node.public_key: node for node in state.get_node_info() if node.status != "unregistered"}
    for key, node in present.items():
        if wanted.get(key) != node.name:
            state.delete_node(NOOP_FLWR_AID, node.node_id)
            log.info("%s may no longer connect", node.name)
    for key, site in wanted.items():
        if key not in present or present[key].name != site:
            try:
                state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0, name=site)
                log.info("%s may connect", site)
            except ValueError:  # Flower never takes a key again
                log.error("%s may not connect: its key was dismissed before. Let the site make a new one", site)


def site_names(state: LinkState) -> dict[int, str]:
    """Names of the enrolled sites by node."""
    return {node.node_id: node.name for node in state.get_node_info() if node.status != "unregistered"}


def connected_keys(state: LinkState) -> set[str]:
    """Public keys, as PEM, of the sites that are connected now."""
    return {node.public_key.decode() for node in state.get_node_info(statuses=["online"])}


# Messages to sites


def is_awaited(state: LinkState, node_id: int, message_id: str, reply_id: str = "") -> bool:
    """Is this a message to this node, not yet done with, and not answered by another reply than this one?"""
    mine = select(MessageIns.message_id).where(
        MessageIns.message_id == message_id, MessageIns.dst_node_id == uint64_to_int64(node_id)
    )
    other = select(MessageRes.message_id).where(
        MessageRes.reply_to_message_id == message_id, MessageRes.message_id != reply_id
    )
    with _sql(state).session() as session:
        return session.scalar(mine) is not None and (not reply_id or session.scalar(other) is None)


def is_part_for(state: LinkState, node_id: int, part: str) -> bool:
    """Does this part belong to a message to this node that is not yet done with?"""
    whole = select(literal(part).label("id")).cte("whole", recursive=True)
    whole = whole.union(select(ObjectChild.parent_id).where(ObjectChild.child_id == whole.c.id))
    query = select(MessageIns.message_id).where(
        MessageIns.dst_node_id == uint64_to_int64(node_id), MessageIns.message_id.in_(select(whole.c.id))
    )
    with _sql(state).session() as session:
        return session.scalar(query.limit(1)) is not None


def deliver_again(state: LinkState, node_id: int) -> None:
    """Let a site that was restarted pull what it pulled before and had not confirmed."""
    unanswered = select(MessageIns.message_id).where(
        MessageIns.dst_node_id == uint64_to_int64(node_id),
        MessageIns.delivered_at != "",
        MessageIns.message_id.in_(select(StoredObject.object_id)),  # confirming deletes it
    )
    with _sql(state).session() as session:
        session.execute(update(MessageIns).where(MessageIns.message_id.in_(unanswered)).values(delivered_at=""))


def deliver_no_more(state: LinkState, message_id: str) -> None:
    """A site has the message: should it be offered once more, without its parts, Flower would drop the reply too."""
    stamp = datetime.now(UTC).isoformat()
    query = update(MessageIns).where(MessageIns.message_id == message_id, MessageIns.delivered_at == "")
    with _sql(state).session() as session:
        session.execute(query.values(delivered_at=stamp))


# Their replies


def replies_to(state: LinkState, message_ids: Iterable[str]) -> dict[str, Message]:
    """Replies that were announced, without their content, by the message that they answer.

    Flower's own look-up gives an error in place of a reply whose sender is not connected any more.
    """
    query = select(MessageRes).where(MessageRes.reply_to_message_id.in_(list(message_ids)))
    with _sql(state).session() as session:
        rows: list[dict[str, Any]] = [_message_model_to_dict(row) for row in session.scalars(query)]
    for row in rows:
        convert_sint64_values_in_dict_to_uint64(cast(dict[str, int], row), ["run_id", "src_node_id", "dst_node_id"])
    return {row["reply_to_message_id"]: dict_to_message(dict(row)) for row in rows}


def parts_of(state: LinkState, message_id: str) -> dict[str, int | None]:
    """Bytes of each part of a message, None for one that has not come yet; empty when its upload was given up."""
    tree = select(StoredObject.object_id.label("id")).where(StoredObject.object_id == message_id)
    parts = tree.cte("parts", recursive=True)
    parts = parts.union(select(ObjectChild.child_id).where(ObjectChild.parent_id == parts.c.id))
    query = select(StoredObject.object_id, StoredObject.is_available).where(
        StoredObject.object_id.in_(select(parts.c.id))
    )
    store = _files(state)
    with _sql(state).session() as session:
        return {str(part): store.size_bytes(str(part)) if there else None for part, there in session.execute(query)}


def uploader(state: LinkState, session_id: str) -> int | None:
    """The node whose reply is uploaded in this session; None when there is no such session."""
    query = (
        select(MessageRes.src_node_id)
        .join(ObjectPushSessionRoot, ObjectPushSessionRoot.root_object_id == MessageRes.message_id)
        .where(ObjectPushSessionRoot.session_id == session_id)
    )
    with _sql(state).session() as session:
        node_id = session.scalar(query)
    return None if node_id is None else int64_to_uint64(node_id)


def drop_messages(state: LinkState, message_ids: Iterable[str]) -> None:
    """Take messages away with their replies, however much of either is there."""
    for message_id in message_ids:
        query = select(MessageRes.message_id).where(MessageRes.reply_to_message_id == message_id)
        with _sql(state).session() as session:
            roots = [message_id, *session.scalars(query)]
            state.delete_messages(message_ins_ids={message_id})
            for root in roots:
                state.object_store.delete(str(root))
    _files(state).sweep()


def drop_runs(state: LinkState, run_ids: Iterable[int]) -> None:
    """Take all messages of runs that have ended away."""
    for run_id in run_ids:
        state.cleanup_run(run_id)
    _files(state).sweep()
