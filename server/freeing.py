"""How is the memory of a large model given back at once? Flower's records refer to themselves: by the collector."""

from __future__ import annotations

import ctypes
import gc
from functools import cache

from flwr.app import RecordDict

_LARGE_BYTES = 64 * 2**20  # below that, looking for it takes longer than it is worth
_M_MMAP_THRESHOLD, _BLOCK_BYTES = -3, 2**20  # of mallopt(3)


def give_back(size_bytes: int) -> None:
    """Free what is not in use any more, where it was large."""
    if size_bytes > _LARGE_BYTES:
        gc.collect()
        _keep_no_blocks()


@cache
def _keep_no_blocks() -> None:
    """From now on freed blocks go back to the system: glibc keeps those of up to 32 MiB, of which a model has many.

    For small models that would only take time, which the system needs to hand out each block anew.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library has its own ways
        mallopt(_M_MMAP_THRESHOLD, _BLOCK_BYTES)


def size_of(content: RecordDict) -> int:
    """Bytes of the arrays in the content of a message."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())
