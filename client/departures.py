"""What left this site, and is the record of it whole? Found from the site folder alone, without any connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from client.egress import BEGUN, EGRESS, FIRST, Departure, hash_of, is_vouched, open_egress
from client.ledger import Entry, entries
from client.membership import own_key
from shared.keys import PublicKey
from shared.text import printable

_ROUNDING = 1e-9


def audit(folder: Path) -> dict[str, Any]:
    """The rows of the egress ledger as plain data, what is wrong with it, and the hash of its last row.

    Whoever noted that hash on another day, outside the site, can tell that no earlier state of the folder was put back.

    Raises:
        KeyFileError: the site has no key.
        SiteError: the ledger is no database.
    """
    key, spent = own_key(folder).public_key(), entries(folder)
    rows: list[tuple[int, str, str]] = []
    faults: list[str] = []
    if (folder / EGRESS).exists():
        with open_egress(folder) as connection:
            rows = list(connection.execute("SELECT number, message, content FROM departures ORDER BY number"))
            faults = list(_faults(connection, key, rows))
    elif spent:
        faults = ["the egress ledger is missing, though the privacy ledger has releases"]
    departures = [] if faults else [Departure.of(content) for _, _, content in rows]
    faults = faults or list(_contradictions(departures, spent))
    return {
        "whole": not faults,
        "faults": faults,
        "messages": sum(departure.kind != BEGUN for departure in departures),
        "bytes": sum(departure.bytes for departure in departures),
        "last": hash_of(rows[-1][2]) if rows else FIRST,
        "departures": [asdict(departure) for departure in departures],
    }


def _faults(connection: sqlite3.Connection, key: PublicKey, rows: list[tuple[int, str, str]]) -> Iterator[str]:
    """Where the chain of rows is broken, and whether its end is what the site's key signed."""
    previous = FIRST
    for place, (number, message, content) in enumerate(rows, start=1):
        try:
            row = Departure.of(content)
        except (ValueError, TypeError):
            yield f"row {number} is no row"
            return
        if (number, row.number) != (place, place):
            yield f"row {place} is missing or out of its place"
            return
        if (row.kind == BEGUN) != (place == 1):
            yield f"row {place} must not be there: only the first row begins the ledger"
            return
        if row.content() != content or row.sha256 != message or row.previous != previous:
            yield f"row {place} does not follow from the row before: one of them was changed"
            return
        previous = hash_of(content)
    if not is_vouched(connection, key, len(rows), previous):
        yield (
            f"the site's key did not sign the ledger as it ends now, with {len(rows)} rows: rows were changed, or "
            "removed from or added to the end, or the key is another one"
        )


def _contradictions(departures: list[Departure], spent: list[Entry]) -> Iterator[str]:
    """What left cannot have cost more than the privacy ledger states, nor have been made before this one was begun."""
    if departures and any(entry.time < departures[0].time for entry in spent):
        yield "the egress ledger was begun after releases were made: the one before it is missing"
    stated = max((entry.epsilon for entry in spent), default=0.0)
    if any(departure.epsilon > stated + _ROUNDING for departure in departures):
        yield "the privacy ledger states less than it did when messages left: rows of it are missing"


def print_audit(found: dict[str, Any]) -> None:
    """Print what ``audit`` gave as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("#", "Time", "Study", "Stage", "Round", "What", "Bytes", "ε after", box=None, padding=(0, 2, 0, 0))
    for row in found["departures"]:
        cells = [row["number"], row["time"][:16], row["study"], row["stage"], row["round"] or "", row["kind"]]
        cells += [f"{row['bytes']:,}", f"{row['epsilon']:.3f}"]
        table.add_row(*(Text(printable(str(cell))) for cell in cells))
    console = Console(highlight=False)
    if found["departures"]:
        console.print(table)
    console.print(f"{found['messages']} messages, {found['bytes']:,} bytes; last row {found['last'][:16]}")
    for fault in found["faults"]:
        console.print(Text(f"NOT WHOLE: {fault}", "red"))
    if not found["faults"]:
        console.print("whole: every row is as it was written, and signed by this site's key")
