"""How does a test kill the site at every statement? A copy of this process for each, which ends as by a power cut."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

STEP = int(os.environ.get("FEDRETINA_KILL_STEP", "8"))  # 1: every statement, minutes instead of seconds


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder in memory, where there is such a place: what a killed process wrote is there either way."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def in_a_process(do: Callable[[], None], statement: int | None = None, files: tuple[str, ...] = ()) -> bool:
    """Do something in a copy of this process, which is killed (-9) before a statement, or at the end.

    Args:
        statement: counted over the lines of ``files`` that are come to; None: at the end.
        files: ends of the names of the source files whose lines count.

    Returns:
        Whether it came to its end.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            if statement is not None:
                sys.settrace(_killer(statement, files))
            do()
            sys.settrace(None)
            os.write(write, b"done")
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        done = stream.read()
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    return done == b"done"


def _killer(statement: int, files: tuple[str, ...]) -> Callable[..., Any]:
    left = statement

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        nonlocal left
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace
