"""What was imported before, from where, and what was left out? The site's own memory, in ``state/imports``.

Tables in SQLite, read and written by the row, so that an import's memory does not grow with the number of scans: the
sources that were read, the scans that came from them, of which the imaging index is made, and the files that are no
source. All are kept together, in one transaction: a source that is remembered has its scans remembered, whenever the
process was killed.
Names of sources are the hospital's own and stay in here.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from client.database import MOST_VALUES, database, marks
from client.ingest.export import QUARANTINED, SKIPPED, LeftOut, Why
from client.ingest.pseudonyms import IMPORTS
from client.locking import holding
from shared.batched import batched
from shared.errors import SiteError

IMPORTED = "imported"
JOURNAL = f"{IMPORTS}/scans.sqlite"
_CACHE_KB = 4096  # of the tables in memory, whatever their size
_WAITING = 256  # rows that are written together
_CROWDED = 200  # characters of a reason
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sources (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    export BLOB NOT NULL,
    name BLOB NOT NULL,  -- a file name need not be UTF-8
    files TEXT NOT NULL,  -- JSON: length and time of change of each
    fingerprint TEXT NOT NULL,
    outcome TEXT NOT NULL,
    left_out TEXT NOT NULL,  -- JSON: outcome, reason, count and about of each
    scans INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unlisted (
    kind TEXT NOT NULL,
    export BLOB NOT NULL,
    name BLOB NOT NULL,
    copy INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (kind, export, name, copy)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scans (
    image_id TEXT PRIMARY KEY,
    subject_id INTEGER NOT NULL,
    eye TEXT NOT NULL,
    acquired_us INTEGER NOT NULL,
    modality TEXT NOT NULL,
    device TEXT NOT NULL,
    path TEXT NOT NULL,
    height INTEGER NOT NULL,
    width INTEGER NOT NULL,
    spacing_row REAL,
    spacing_column REAL,
    sha256 TEXT NOT NULL,
    quality REAL,
    partner TEXT,
    is_central INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    source TEXT NOT NULL,
    pair_id TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS scans_of_source ON scans (source);
CREATE INDEX IF NOT EXISTS scans_of_patient ON scans (subject_id);
CREATE INDEX IF NOT EXISTS scans_by_partner ON scans (partner) WHERE partner IS NOT NULL;
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is remembered of one source.

    Attributes:
        export: the folder or file that was imported; with ``kind`` and ``name`` it says which source this is.
        files: length in bytes and time of change in ns of each of its files.
        fingerprint: of all on which its scans depend; when it differs, the source is read again.
        outcome: ``IMPORTED`` when a scan was kept, else ``QUARANTINED`` or ``SKIPPED``.
        left_out: what did not become a scan.
        scans: how many were kept.
    """

    kind: str
    export: str
    name: str
    files: tuple[tuple[int, int], ...]
    fingerprint: str
    outcome: str
    left_out: tuple[LeftOut, ...]
    scans: int

    @property
    def id(self) -> str:
        return source_id(self.kind, self.export, self.name)


class Unlisted(NamedTuple):
    """Something of an export that no source stands for.

    Attributes:
        name: its path within the export.
        copy: 0 for a file that no source names; 1, 2, … where a table lists a source once more.
    """

    name: str
    copy: int
    outcome: str
    reason: str


class NamedLeftOut(NamedTuple):
    """What was left out, by name: for the hospital's own eyes.

    Attributes:
        export: the folder or file that was imported.
        name: path within it of what was left out, or out of which something was.
    """

    kind: str
    export: str
    name: str
    left_out: LeftOut


class KeptScan(NamedTuple):
    """What is remembered of one scan, which is in the site folder.

    Attributes:
        acquired_us: microseconds since 1970, by the site's clock.
        path: relative to ``imaging/files``.
        spacing_row: height of a pixel in mm; None when unknown.
        spacing_column: likewise its width.
        sha256: of the file's bytes.
        quality: as the device states it.
        partner: of an OCT, what the export calls the infrared scan that belongs to it; of an infrared scan, what it is
            called there: its image_id, unless the export has names for pairs. A pseudonym.
        is_central: of the B-scans of a volume, the one that is paired.
        bytes: length of the file.
        source: id of the source that it came from.
    """

    image_id: str
    subject_id: int
    eye: str
    acquired_us: int
    modality: str
    device: str
    path: str
    height: int
    width: int
    spacing_row: float | None
    spacing_column: float | None
    sha256: str
    quality: float | None
    partner: str | None
    is_central: bool
    bytes: int
    source: str


_COLUMNS = ", ".join(KeptScan._fields)


@dataclass(frozen=True)
class JournalSummary:
    """What ``site check`` may tell of all imports: counts and reasons, no names.

    Attributes:
        sources: by kind and outcome.
        reasons: by kind, outcome and reason, how many sources, scans or rows.
    """

    sources: Mapping[tuple[str, str], int] = field(default_factory=dict)
    reasons: Mapping[tuple[str, str, str], int] = field(default_factory=dict)


class Journal:
    """The journal of a site that is imported into; what is put in stays in once ``commit`` was called.

    What is put is written when enough of it waits, or when somebody reads: a statement for each row would cost an
    import more than the rest of its own work, as it has to wait for the threads that decode.
    """

    def __init__(self, rows: sqlite3.Connection) -> None:
        self._rows = rows
        self._entries: dict[str, Entry] = {}
        self._scans: dict[str, KeptScan] = {}
        rows.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        rows.execute("BEGIN")

    @property
    def rows(self) -> sqlite3.Connection:
        """The tables."""
        self._write()
        return self._rows

    def commit(self) -> None:
        self.rows.execute("COMMIT")
        self._rows.execute("BEGIN")

    def is_empty(self) -> bool:
        any_row = "SELECT 1 FROM sources UNION ALL SELECT 1 FROM unlisted LIMIT 1"
        return self.rows.execute(any_row).fetchone() is None

    def entries(self, identities: Sequence[str]) -> dict[str, Entry]:
        """Those of these sources that are known."""
        return {row[0]: _entry(row) for row in self._find("SELECT * FROM sources WHERE id", identities)}

    def put_entry(self, entry: Entry) -> None:
        """Remember a source, in place of what was known of it."""
        self._entries[entry.id] = entry
        self._write_some()

    def sources(self, kind: str, export: str) -> Iterator[str]:
        """Ids of the sources of an export."""
        found = self.rows.execute("SELECT id FROM sources WHERE (kind, export) = (?, ?)", (kind, os.fsencode(export)))
        return (identity for (identity,) in found)

    def unlisted(self, kind: str, export: str) -> Iterator[Unlisted]:
        """What no source of an export stands for."""
        question = "SELECT name, copy, outcome, reason FROM unlisted WHERE (kind, export) = (?, ?)"
        for name, *rest in self.rows.execute(question, (kind, os.fsencode(export))):
            yield Unlisted(os.fsdecode(name), *rest)

    def put_unlisted(self, kind: str, export: str, unlisted: Iterable[Unlisted]) -> None:
        """Remember such things, in place of what was known of them."""
        rows = [(kind, os.fsencode(export), os.fsencode(name), *rest) for name, *rest in unlisted]
        self.rows.executemany(
            "INSERT INTO unlisted VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
            "SET outcome = excluded.outcome, reason = excluded.reason "
            "WHERE (unlisted.outcome, unlisted.reason) IS NOT (excluded.outcome, excluded.reason)",
            rows,
        )

    def drop_unlisted(self, kind: str, export: str, unlisted: Iterable[Unlisted]) -> None:
        """Forget such things."""
        rows = [(kind, os.fsencode(export), os.fsencode(item.name), item.copy) for item in unlisted]
        self.rows.executemany("DELETE FROM unlisted WHERE (kind, export, name, copy) = (?, ?, ?, ?)", rows)

    def scans(self, image_ids: Sequence[str]) -> dict[str, KeptScan]:
        """Those of these scans that are known."""
        return {row[0]: _scan(row) for row in self._find(f"SELECT {_COLUMNS} FROM scans WHERE image_id", image_ids)}

    def scans_from(self, sources: Sequence[str]) -> dict[str, list[KeptScan]]:
        """The scans that came from each of these sources."""
        found: dict[str, list[KeptScan]] = {source: [] for source in sources}
        for row in self._find(f"SELECT {_COLUMNS} FROM scans WHERE source", sources):
            scan = _scan(row)
            found[scan.source].append(scan)
        return found

    def paths(self, beginning: str) -> set[str]:
        """Paths of the pictures of all scans whose image_id begins so."""
        between = "SELECT path FROM scans WHERE image_id >= ? AND image_id < ?"
        return {path for (path,) in self.rows.execute(between, (beginning, f"{beginning}~"))}

    def put_scan(self, scan: KeptScan) -> None:
        """Remember a scan, in place of another one of its name; who is its partner is found out anew."""
        self._scans[scan.image_id] = scan
        self._write_some()

    def drop_scan(self, image_id: str, source: str) -> None:
        """Forget a scan, if it is still the one that came from this source."""
        self.rows.execute("DELETE FROM scans WHERE (image_id, source) = (?, ?)", (image_id, source))

    def _find(self, question: str, values: Sequence[str]) -> Iterator[Any]:
        for some in batched(values, MOST_VALUES):
            yield from self.rows.execute(f"{question} IN ({marks(some)})", some)

    def _write_some(self) -> None:
        if len(self._entries) + len(self._scans) > _WAITING:
            self._write()

    def _write(self) -> None:
        if self._scans:
            row = f"({_COLUMNS}) VALUES ({marks(KeptScan._fields)})"
            self._rows.executemany(f"REPLACE INTO scans {row}", self._scans.values())
            self._scans = {}
        if self._entries:
            rows = [_row(identity, entry) for identity, entry in self._entries.items()]
            self._rows.executemany(f"REPLACE INTO sources VALUES ({marks(rows[0])})", rows)
            self._entries = {}


@contextmanager
def importing(folder: Path) -> Iterator[None]:
    """Keep any second import out of a site folder; raises ``SiteError`` in its process."""
    state = folder / IMPORTS
    for part in (state.parent, state):  # the mode of parents=True would hold for the last one only
        part.mkdir(exist_ok=True, mode=0o700)
    remedy = "Wait for the other one, or stop it; it can be run again."
    refusal = SiteError(str(folder), "must be imported into by one process at a time", remedy=remedy)
    with holding(state / "lock", refusal):
        yield


@contextmanager
def open_journal(folder: Path) -> Iterator[Journal]:
    """The journal of a site folder; where nothing was ever read there is none afterwards.

    Raises:
        SiteError: it is damaged, or cannot be written.
    """
    is_empty = False
    try:
        with _tables(folder) as rows:
            journal = Journal(rows)
            try:
                yield journal
            finally:
                is_empty = journal.is_empty()
    finally:
        if is_empty:
            (folder / JOURNAL).unlink()


@contextmanager
def _tables(folder: Path) -> Iterator[sqlite3.Connection]:
    file = folder / JOURNAL
    try:
        with database(file, _SCHEMA) as rows:
            yield rows
    except sqlite3.Error as error:
        remedy = "Make room if the disk is full; else restore it from a copy, or import everything into a new folder."
        raise SiteError(str(file), "must be a journal that can be used", value=str(error), remedy=remedy) from None


def read_journal(folder: Path) -> JournalSummary:
    """Counts and reasons of everything that was imported into a site folder; empty when nothing was."""
    sources: Counter[tuple[str, str]] = Counter()
    reasons: Counter[tuple[str, str, str]] = Counter()
    if not (folder / JOURNAL).exists():
        return JournalSummary()
    with _tables(folder) as rows:
        for kind, outcome, text, count in rows.execute(
            "SELECT kind, outcome, left_out, count(*) FROM sources GROUP BY kind, outcome, left_out"
        ):
            sources[kind, outcome] += count
            for item in _left_out(text):
                reasons[kind, item.outcome, item.reason] += count * item.count
        for kind, outcome, reason, count in rows.execute(
            "SELECT kind, outcome, reason, count(*) FROM unlisted GROUP BY kind, outcome, reason"
        ):
            sources[kind, outcome] += count
            reasons[kind, outcome, reason] += count
    return JournalSummary(dict(sources), dict(reasons))


def read_left_out_files(folder: Path) -> Iterator[NamedLeftOut]:
    """All that imports of scans left out, by kind, export and name."""
    if not (folder / JOURNAL).exists():
        return
    question = """
        SELECT kind, export, name, left_out, outcome, '' FROM sources WHERE left_out != '[]'
        UNION ALL SELECT kind, export, name, '', outcome, reason FROM unlisted
        ORDER BY 1, 2, 3
    """
    with _tables(folder) as rows:
        for kind, export, name, text, outcome, reason in rows.execute(question):
            for item in _left_out(text) if text else (LeftOut(outcome, reason),):
                yield NamedLeftOut(kind, os.fsdecode(export), os.fsdecode(name), item)


def source_id(kind: str, export: str, name: str) -> str:
    """Names a source in the tables."""
    return hashlib.sha256(os.fsencode(f"{kind}\0{export}\0{name}")).hexdigest()[:32]


def outcome_of(kept: int, left_out: Sequence[LeftOut]) -> str:
    """The outcome of a source: imported when anything of it was kept."""
    if kept:
        return IMPORTED
    return QUARANTINED if any(item.outcome == QUARANTINED for item in left_out) else SKIPPED


class Reasons:
    """Counts why something was left out; a reason is cut to a readable length."""

    def __init__(self) -> None:
        self._counts: Counter[Why] = Counter()

    def add(self, *left_out: LeftOut) -> None:
        for item in left_out:
            reason = " ".join(item.reason.encode("utf-8", "replace").decode().split())
            self._counts[Why(item.outcome, reason[:_CROWDED], item.about)] += item.count

    def counted(self) -> tuple[LeftOut, ...]:
        """Each with its count, in a fixed order."""
        return tuple(LeftOut(why.outcome, why.reason, count, why.about) for why, count in sorted(self._counts.items()))


def _row(identity: str, entry: Entry) -> tuple[object, ...]:
    left_out = json.dumps([(item.outcome, item.reason, item.count, item.about) for item in entry.left_out])
    names = os.fsencode(entry.export), os.fsencode(entry.name)
    files = json.dumps(entry.files)
    return identity, entry.kind, *names, files, entry.fingerprint, entry.outcome, left_out, entry.scans


def _entry(row: tuple[str, str, bytes, bytes, str, str, str, str, int]) -> Entry:
    _, kind, export, name, files, fingerprint, outcome, left_out, scans = row
    stamps = tuple((size, changed) for size, changed in json.loads(files))
    names = os.fsdecode(export), os.fsdecode(name)
    return Entry(kind, *names, stamps, fingerprint, outcome, _left_out(left_out), scans)


def _scan(row: tuple[Any, ...]) -> KeptScan:
    scan = KeptScan(*row)
    return scan._replace(is_central=bool(scan.is_central))


def _left_out(text: str) -> tuple[LeftOut, ...]:
    return tuple(LeftOut(*item) for item in json.loads(text))
