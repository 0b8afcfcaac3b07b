"""How does a site keep a ledger or a journal? In SQLite, its owner's alone, on the disk before anything goes on."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from shared.errors import SiteError
from shared.files import flush

MOST_VALUES = 500  # SQLite takes at least 999 in a statement
_WAIT_S = 60.0  # for another process that has the database open
_REMEDY = "Nothing leaves the site until it can be used. Look at the disk; put a copy back if there is one."


@contextmanager
def database(file: Path, schema: str) -> Iterator[sqlite3.Connection]:
    """A database, which is made where there is none; each statement is a transaction unless BEGIN says otherwise.

    Args:
        schema: statements that make the tables where they are not there yet.

    Raises:
        sqlite3.Error: it is damaged.
        OSError: it cannot be made.
    """
    _make(file)
    with closing(sqlite3.connect(file, timeout=_WAIT_S, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a commit returns when it is on the disk
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged")
        connection.executescript(schema)
        yield connection


@contextmanager
def transaction(file: Path, schema: str) -> Iterator[sqlite3.Connection]:
    """One transaction on a ledger: all of the block is kept, or nothing of it.

    Args:
        schema: as of ``database``.

    Raises:
        SiteError: the ledger is damaged, or cannot be written.
    """
    try:
        with database(file, schema) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")  # closing without it drops what was done
    except (sqlite3.Error, OSError) as error:
        raise SiteError(str(file), "must be a ledger that can be used", value=str(error), remedy=_REMEDY) from None


def marks(values: Sequence[object]) -> str:
    """Question marks for the values of a statement."""
    return ", ".join("?" * len(values))


def _make(file: Path) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))  # SQLite gives its other files the same mode
        flush(file.parent)
