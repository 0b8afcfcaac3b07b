"""How is a file replaced? As a whole or not at all, whenever the power fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomic(file: Path, content: bytes) -> None:
    """Replace a file's content: after a crash it holds the old content or the new, never a part."""
    with replacing(file) as draft:
        draft.write_bytes(content)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A draft that takes the file's place, durably, when the block ends well, and is gone when it does not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        flush(draft)
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    flush(file.parent)  # the rename itself must survive a power cut


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
