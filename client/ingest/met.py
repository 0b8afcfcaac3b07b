"""What has this import met already? Sources and files, on the disk of the site folder until the import ends."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from client.database import MOST_VALUES, marks
from shared.batched import batched

_FILE = "met.sqlite"


class Met:
    """A set of names on the disk, each as a digest: an export may have more files than fit in memory."""

    def __init__(self, rows: sqlite3.Connection) -> None:
        self._rows = rows
        rows.execute("PRAGMA journal_mode = OFF")  # nobody reads it after a crash
        rows.execute("CREATE TABLE met (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        rows.execute("BEGIN")

    def add(self, names: Sequence[str]) -> list[str]:
        """Those that are new, in their order and once each."""
        new = self._new(names)
        self._rows.executemany("INSERT INTO met VALUES (?)", [(digest,) for digest in new])
        return [*new.values()]

    def new(self, names: Sequence[str]) -> list[str]:
        """The same, without adding them."""
        return [*self._new(names).values()]

    def _new(self, names: Sequence[str]) -> dict[bytes, str]:
        digests = {_digest(name): name for name in names}
        for some in batched([*digests], MOST_VALUES):
            for (digest,) in self._rows.execute(f"SELECT digest FROM met WHERE digest IN ({marks(some)})", some):
                del digests[digest]
        return digests


@contextmanager
def open_met(folder: Path) -> Iterator[Met]:
    """An empty one, in a folder that its owner removes."""
    with closing(sqlite3.connect(folder / _FILE, isolation_level=None)) as rows:
        yield Met(rows)


def _digest(name: str) -> bytes:
    return hashlib.sha256(os.fsencode(name)).digest()[:16]
