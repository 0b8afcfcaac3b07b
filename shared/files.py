"""How is a file replaced? As a whole or not at all, whenever the power fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from filecmp import cmp
from pathlib import Path


def write_atomic(file: Path, content: bytes) -> None:
    """Replace a file's content: after a crash it holds the old content or the new, never a part."""
    with replacing(file) as draft:
        draft.write_bytes(content)


@contextmanager
def replacing(file: Path, *, unless_equal: bool = False) -> Iterator[Path]:
    """A draft that takes the file's place, durably, when the block ends well, and is gone when it does not.

    Args:
        unless_equal: leave a file as it is that holds just that already.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with naming(file):
        handle, name = tempfile.mkstemp(prefix=_draft(file), dir=file.parent)
    os.close(handle)
    draft = Path(name)
    try:
        with naming(file):
            yield draft
            if unless_equal and file.exists() and cmp(draft, file, shallow=False):
                draft.unlink()
                return
            flush(draft)
            os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    flush(file.parent)  # the rename itself must survive a power cut


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """An error of the system that names no file, as of a full disk, or a draft of this file, is about this file."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(str(error.filename)).name.startswith(_draft(file)):
            error.filename = str(file)
        raise


def _draft(file: Path) -> str:
    return f".{file.name}-"


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
