"""How does a message wait on the site's disk? Whole, so that a site that is killed goes on where it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from flwr.app import Array, Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    is_valid_sha256_hash,
    iterate_object_tree,
    no_object_id_recompute,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from shared.errors import CheckpointError, MessageError
from shared.parts import assemble, skim

INBOX, OUTBOX, LOG = "state/work/inbox", "state/work/outbox", "state/log/site.jsonl"
DONE = "done"  # what the worker says when a reply is in the outbox
_MESSAGE, _TREE = "message.pb", "tree.pb"
_SPARE_BYTES = 64 * 2**20
_DROPPED = "The message is dropped, and the coordinator asks again."

Proto = TypeVar("Proto", ProtoMessage, ObjectTree)


class Parcel:
    """A place for one message; there is one in it, whole, or none.

    Every part is a file named by the SHA-256 of its bytes, as Flower names them, and is checked when it is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_there(self) -> bool:
        """Does the place hold a message?"""
        return self.folder.exists()

    @property
    def message(self) -> ProtoMessage:
        """The message without its content; raises ``CheckpointError`` when it is damaged."""
        return self._parse(_MESSAGE, ProtoMessage())

    @property
    def tree(self) -> ObjectTree:
        """The names of its parts; raises ``CheckpointError`` when they are damaged."""
        return self._parse(_TREE, ObjectTree())

    def _parse(self, name: str, empty: Proto) -> Proto:
        try:
            empty.ParseFromString((self.folder / name).read_bytes())
        except (DecodeError, OSError):
            raise CheckpointError(str(self.folder / name), "must be undamaged", remedy=_DROPPED) from None
        return empty

    @property
    def message_id(self) -> str:
        """Of the message."""
        return self.message.metadata.message_id

    @property
    def run_id(self) -> int:
        """Of Flower's run that the message belongs to."""
        return self.message.metadata.run_id

    @property
    def size_bytes(self) -> int:
        """Of all parts."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def read(self, part: str) -> bytes:
        """One part; raises ``CheckpointError`` when it is not there as it was written."""
        try:
            content = (self.folder / part).read_bytes() if is_valid_sha256_hash(part) else b""
        except OSError:
            content = b""
        if get_object_id(content) != part:
            raise CheckpointError(f"{self.folder}: part {part!r}", "must be undamaged", remedy=_DROPPED)
        return content

    def load(self) -> Message:
        """The message with its content.

        Raises:
            CheckpointError: it is not there as it was written.
            MessageError: its parts do not make a message, or one that is too large.
        """
        contents = {part.object_id: self.read(part.object_id) for part in iterate_object_tree(self.tree)}
        return assemble(self.header(), contents, 2 * self.size_bytes + _SPARE_BYTES)

    def skim(self, look: Callable[[Array], None] | None) -> Message:
        """The message without what its arrays hold, which ``look``, if any, is shown one after the other.

        Parts are not compared with their names here, but when they are sent: they are hashed once.

        Raises:
            CheckpointError: its frame is damaged.
            MessageError: its parts do not make a message, or there are others beside them.
        """
        message, parts = skim(self.header(), lambda part: (self.folder / part).read_bytes(), look)
        listed = {part.object_id for part in iterate_object_tree(self.tree)}
        kept = {file.name for file in self.folder.iterdir()}
        if not parts == listed == kept - {_MESSAGE, _TREE}:
            raise MessageError("message", "must have the parts of which it is made, and no others")
        return message

    def header(self) -> Message:
        """The message without its content, to reply to."""
        return message_from_proto(self.message)

    def store(self, message: Message) -> None:
        """Put a message here; another one that was here is replaced."""
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            tree = get_object_tree(message)
            draft = self.draft(message_to_proto(remove_content_from_message(message)), tree)
            for part, content in get_all_nested_objects(message).items():
                draft.write(part, content.deflate())
        draft.commit()

    def draft(self, message: ProtoMessage, tree: ObjectTree) -> Draft:
        """A message that is being written; earlier drafts are dropped."""
        return Draft(self.folder, message, tree)

    def clear(self) -> None:
        """Take the message away."""
        if self.is_there:
            gone = self.folder.with_name(f".gone-{self.folder.name}")
            shutil.rmtree(gone, ignore_errors=True)
            os.rename(self.folder, gone)
            shutil.rmtree(gone, ignore_errors=True)


class Draft:
    """A message of which not all parts are here yet."""

    def __init__(self, folder: Path, message: ProtoMessage, tree: ObjectTree) -> None:
        self._target, self._folder = folder, folder.with_name(f".draft-{folder.name}")
        shutil.rmtree(self._folder, ignore_errors=True)
        if not all(is_valid_sha256_hash(part.object_id) for part in iterate_object_tree(tree)):
            raise MessageError("message", "must name its parts by SHA-256")  # they become names of files
        self._folder.mkdir(parents=True, mode=0o700)
        (self._folder / _MESSAGE).write_bytes(message.SerializeToString())
        (self._folder / _TREE).write_bytes(tree.SerializeToString())

    def put(self, part: str, content: bytes) -> None:
        """Write one part that came; raises ``MessageError`` when it is not what its name says."""
        if get_object_id(content) != part:
            raise MessageError("message", "must be of parts named by their SHA-256", value=part)
        self.write(part, content)

    def write(self, part: str, content: bytes) -> None:
        """Write one part that was named here."""
        (self._folder / part).write_bytes(content)

    def commit(self) -> None:
        """From now on the place holds this message, through a power cut too."""
        for path in (*self._folder.iterdir(), self._folder):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        Parcel(self._target).clear()
        os.rename(self._folder, self._target)
