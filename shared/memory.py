"""When does freed memory go back to the system? Late, since to get it again costs time; of large models at once.

glibc gives back blocks of 128 KiB and more as soon as they are free, and the system clears each page anew: with models
of tens of megabytes, messages of them and batches of scans that takes more time than the copying. So blocks are kept,
up to bounds. A model of hundreds of megabytes should rather not lie in memory twice. See mallopt(3).
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import cast

_LARGE_BYTES = 64 * 2**20  # models, and also blocks, that are not kept
_KEPT_BYTES = 256 * 2**20  # at most, of what lies free at the end
_SMALL_BYTES = 2**20  # blocks of which a large model has many, and that are not kept then
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed() -> None:
    """From now on this process keeps the memory that it has freed, up to bounds; without effect where not on glibc."""
    _bound(_LARGE_BYTES, _KEPT_BYTES)


def give_back(size_bytes: int) -> None:
    """Free what is not in use any more, where it was large."""
    if size_bytes > _LARGE_BYTES:
        gc.collect()  # Flower's records refer to themselves
        _bound(_SMALL_BYTES, _SMALL_BYTES)
        trim = _of_libc("malloc_trim")  # of what was kept before
        if trim is not None:
            trim(0)


def _bound(largest_block: int, kept: int) -> None:
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, largest_block)
        mallopt(_TRIM_THRESHOLD, kept)


def _of_libc(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it has none of that name."""
    return cast(Callable[..., int] | None, getattr(ctypes.CDLL(None), name, None))
