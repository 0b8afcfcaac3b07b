"""How is logged what happened? A line of JSON each in a file, or plain lines on a terminal; never patients' values."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from shared.text import printable

_OURS = ("shared", "client", "server", "simulation")
_FILE_BYTES, _FILES = 20 * 2**20, 5


def quiet_flower() -> None:
    """Flower tells of every call and round; what we tell of them is ours to say."""
    logging.getLogger("flwr").setLevel(logging.WARNING)


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:  # noqa: N802
        # Where it happened, but not what the exception says: libraries quote values and names of files.
        kind, _, trace = ei
        return "".join(traceback.format_tb(trace)) + (kind.__name__ if kind else "")


class _JsonLines(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _PlainLines(_Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


class _SharedFile(RotatingFileHandler):
    """A file of several processes: who finds that another one has rotated it goes on with the new one."""

    def _open(self) -> TextIOWrapper:
        handle = os.open(self.baseFilename, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        return os.fdopen(handle, "a", encoding="utf-8")

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802
        if self.stream is not None and not self._is_current(self.stream.fileno()):
            self.stream.close()
            self.stream = self._open()
        return bool(super().shouldRollover(record))

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.baseFilename))
        except FileNotFoundError:
            return False


def log_to(file: Path | None = None, verbose: bool = False) -> None:
    """Send the log of our packages to a file, as JSON lines, or to standard error, as plain ones.

    The file is readable by its owner alone and does not grow without bound.
    """
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_PlainLines("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = _SharedFile(file, maxBytes=_FILE_BYTES, backupCount=_FILES, encoding="utf-8")
        handler.setFormatter(_JsonLines())
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG if verbose else logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False
