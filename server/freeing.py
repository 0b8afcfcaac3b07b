"""How is the memory of a large model given back at once? Flower's records refer to themselves: by the collector."""

from __future__ import annotations

import gc

from flwr.app import RecordDict

_LARGE_BYTES = 64 * 2**20  # below that, looking for it takes longer than it is worth


def give_back(size_bytes: int) -> None:
    """Free what is not in use any more, where it was large."""
    if size_bytes > _LARGE_BYTES:
        gc.collect()


def size_of(content: RecordDict) -> int:
    """Bytes of the arrays in the content of a message."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())
