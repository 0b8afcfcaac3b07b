"""How is a second process kept out of a site folder? By a lock on a file, which ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import SiteError


@contextmanager
def holding(file: Path, refusal: SiteError) -> Iterator[None]:
    """Hold the lock while in the block; raises ``refusal`` where another process holds it."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(handle, "a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        yield
