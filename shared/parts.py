"""How is a message put together from its parts, when whoever sent them may have made them up?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from flwr.app import Array, Message, RecordDict
from flwr.app.message import make_message
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from shared.errors import MessageError


def assemble(header: Message, parts: dict[str, bytes], limit_bytes: int) -> Message:
    """A message with its content; all else is taken from the header, which the other side has checked.

    Args:
        header: the message without its content.
        parts: by their names; the message's own id is the root. They are taken out as they are used: a large model is
            not in memory twice.
        limit_bytes: what it may take in memory. An array names its pieces, and may name one piece a million times.

    Raises:
        MessageError: parts that are missing, of other kinds, no parts at all, or too large together.
    """
    with _refusing():
        size = sum(_size_bytes(part, parts) for part in parts.values())
        if size > limit_bytes:
            raise MessageError("message", f"must take at most {limit_bytes} bytes", value=size)
        return _whole(header, parts, _take_arrays(parts))


def skim(
    header: Message, read: Callable[[str], bytes], look: Callable[[Array], None] | None
) -> tuple[Message, set[str]]:
    """A message without what its arrays hold, and the names of all parts of which it is made.

    Args:
        header: the message without its content.
        read: the part of a name.
        look: is shown the arrays, one after the other: no more than one of them is in memory. None: they are not read.

    Raises:
        MessageError: parts that are missing, of other kinds, or no parts at all; or raised by ``look``.
    """
    with _refusing():
        parts: dict[str, bytes] = {}
        hollow: dict[str, InflatableObject] = {}
        names, waiting = set[str](), [header.metadata.message_id]
        while waiting:
            name = waiting.pop()
            if name in names:
                continue
            names.add(name)
            part = read(name)
            kind, children = _head(part)
            if kind != Array.__qualname__:
                parts[name] = part
                waiting += children
                continue
            names.update(children)
            hollow[name] = Array("uint8", (0,), "", b"")
            if look is not None:
                array = inflate_object_from_contents(name, {name: part, **{piece: read(piece) for piece in children}})
                look(cast(Array, array))
        return _whole(header, parts, hollow), names


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except MessageError:
        raise
    except Exception as error:  # Flower fails in a dozen ways on parts that it did not make
        raise MessageError("message", "must be put together from its parts", value=type(error).__name__) from None


def _whole(header: Message, parts: dict[str, bytes], arrays: dict[str, InflatableObject]) -> Message:
    whole = inflate_object_from_contents(header.metadata.message_id, parts, objects=arrays)
    if not isinstance(whole, Message):
        raise TypeError(f"a {type(whole).__name__}")
    if whole.has_error():
        return make_message(metadata=header.metadata, error=whole.error)
    if not isinstance(whole.content, RecordDict):
        raise TypeError(f"a message of {type(whole.content).__name__}")
    return make_message(metadata=header.metadata, content=whole.content)


def _take_arrays(parts: dict[str, bytes]) -> dict[str, InflatableObject]:
    """The arrays, one after the other; Flower would keep the pieces of all of them until the last is done."""
    children = {name: _head(part)[1] for name, part in parts.items() if _head(part)[0] == Array.__qualname__}
    uses = Counter(piece for pieces in children.values() for piece in set(pieces))
    arrays = {}
    for name, pieces in children.items():
        arrays[name] = inflate_object_from_contents(name, {part: parts[part] for part in (name, *pieces)})
        for piece in set(pieces):
            uses[piece] -= 1
            if not uses[piece]:  # two arrays may have a piece in common
                del parts[piece]
    return arrays


def _head(part: bytes) -> tuple[str, list[str]]:
    """The kind of a part, and the names of those that it is made of."""
    kind, children, _ = get_object_head_values_from_object_content(part)
    return kind, children


def _size_bytes(part: bytes, parts: dict[str, bytes]) -> int:
    """What a part takes in memory once it is inflated."""
    kind, children = _head(part)
    if kind != Array.__qualname__:
        return len(part)
    pieces = cast(list[int], json.loads(get_object_body(part, Array))["arraychunk_ids"])
    return len(part) + sum(len(parts[children[piece]]) for piece in pieces)
