"""What was imported before, from where, and what was left out? The site's own memory, in ``state/imports``.

Two tables, each replaced as a whole: the scans, from which the imaging index is made, and the sources. Scans are
written first: a source that is in its table has its scans in theirs, whenever the process was killed. Names of sources
are the hospital's own and stay in here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from client.ingest.export import QUARANTINED, SKIPPED, LeftOut
from client.ingest.pseudonyms import IMPORTS
from client.locking import holding
from shared.errors import SiteError
from shared.files import write_atomic
from shared.site_folder import IMAGES

IMPORTED = "imported"
SCANS_FILE, SOURCES_FILE = f"{IMPORTS}/scans.parquet", f"{IMPORTS}/sources.parquet"
SCANS = pa.schema(
    [
        *(column for column in IMAGES if column.name != "pair_id"),
        ("partner", pa.string()),  # image_id of the infrared scan that the export names
        ("is_central", pa.bool_()),
        ("bytes", pa.int64()),  # length of the file
        ("source", pa.string()),  # id of the source that it came from
    ]
)
_SOURCES = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("export", pa.binary()),
        ("name", pa.binary()),  # a file name need not be UTF-8
        ("files", pa.list_(pa.list_(pa.int64()))),  # length and time of change of each
        ("fingerprint", pa.string()),
        ("outcome", pa.string()),
        ("left_out", pa.string()),  # JSON: outcome, reason, count
        ("scans", pa.int64()),
    ]
)
_AT_ONCE = 1024  # rows as Python objects
_CROWDED = 200  # characters of a reason


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


@dataclass(frozen=True)
class JournalSummary:
    """What ``site check`` may tell of all imports: counts and reasons, no names.

    Attributes:
        sources: by kind and outcome.
        reasons: by kind, outcome and reason, how many sources, scans or rows.
    """

    sources: Mapping[tuple[str, str], int] = field(default_factory=dict)
    reasons: Mapping[tuple[str, str, str], int] = field(default_factory=dict)


def source_id(kind: str, export: str, name: str) -> str:
    """Names a source in the tables."""
    return hashlib.sha256(b"\0".join(os.fsencode(part) for part in (kind, export, name))).hexdigest()[:32]


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


def read_entries(folder: Path) -> dict[str, Entry]:
    """Every source that was read, by its id."""
    entries = {}
    for batch in _batches(folder / SOURCES_FILE):
        for row in batch.to_pylist():
            entry = Entry(
                kind=row["kind"],
                export=os.fsdecode(row["export"]),
                name=os.fsdecode(row["name"]),
                files=tuple((size, changed) for size, changed in row["files"]),
                fingerprint=row["fingerprint"],
                outcome=row["outcome"],
                left_out=tuple(LeftOut(*item) for item in json.loads(row["left_out"])),
                scans=row["scans"],
            )
            entries[row["id"]] = entry
    return entries


def read_scans(folder: Path) -> pa.Table:
    """Every scan that was imported, columns of ``SCANS``, by image_id."""
    batches = list(_batches(folder / SCANS_FILE))
    return pa.Table.from_batches(batches, schema=SCANS)


def write(folder: Path, scans: pa.Table, entries: Mapping[str, Entry]) -> None:
    """Replace both tables, the scans first."""
    replace_table(folder / SCANS_FILE, scans)
    identities, parts = sorted(entries), [_SOURCES.empty_table()]
    for start in range(0, len(identities), _AT_ONCE):
        rows = [_row(identity, entries[identity]) for identity in identities[start : start + _AT_ONCE]]
        parts.append(pa.Table.from_pylist(rows, schema=_SOURCES))
    replace_table(folder / SOURCES_FILE, pa.concat_tables(parts).combine_chunks())


def replace_table(file: Path, table: pa.Table) -> None:
    """Write a table, mode 0600, unless the file holds just that already."""
    content = pa.BufferOutputStream()
    pq.write_table(table, content)
    written = content.getvalue().to_pybytes()
    if not file.exists() or file.read_bytes() != written:
        write_atomic(file, written)


def remove_drafts(file: Path) -> None:
    """Remove what an import that was killed had written to take the place of a table."""
    for draft in file.parent.glob(f".{file.name}-*"):
        draft.unlink()


def _row(identity: str, entry: Entry) -> dict[str, object]:
    left_out = [(item.outcome, item.reason, item.count) for item in entry.left_out]
    return {
        "id": identity,
        "kind": entry.kind,
        "export": os.fsencode(entry.export),
        "name": os.fsencode(entry.name),
        "files": entry.files,
        "fingerprint": entry.fingerprint,
        "outcome": entry.outcome,
        "left_out": json.dumps(left_out),
        "scans": entry.scans,
    }


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    if not file.exists():
        return
    try:
        with pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches()
    except (pa.ArrowException, OSError) as error:
        remedy = "Restore it from a copy, or import everything into a new folder."
        raise SiteError(str(file), "must be a readable table", value=type(error).__name__, remedy=remedy) from None


def outcome_of(kept: int, left_out: Sequence[LeftOut]) -> str:
    """The outcome of a source: imported when anything of it was kept."""
    if kept:
        return IMPORTED
    return QUARANTINED if any(item.outcome == QUARANTINED for item in left_out) else SKIPPED


def count_reasons(left_out: Sequence[LeftOut]) -> tuple[LeftOut, ...]:
    """Equal ones as one with their count, in a fixed order; a reason is cut to a readable length."""
    counts: Counter[tuple[str, str]] = Counter()
    for item in left_out:
        reason = " ".join(item.reason.encode("utf-8", "replace").decode().split())
        counts[item.outcome, reason[:_CROWDED]] += item.count
    return tuple(LeftOut(outcome, reason, count) for (outcome, reason), count in sorted(counts.items()))


def read_journal(folder: Path) -> JournalSummary:
    """Counts and reasons of everything that was imported into a site folder; empty when nothing was."""
    sources: Counter[tuple[str, str]] = Counter()
    reasons: Counter[tuple[str, str, str]] = Counter()
    for entry in read_entries(folder).values():
        for item in entry.left_out:
            reasons[entry.kind, item.outcome, item.reason] += item.count
        # An entry without a name stands for all files of an export that no source names.
        count = 1 if entry.name else sum(item.count for item in entry.left_out)
        sources[entry.kind, entry.outcome] += count
    return JournalSummary(dict(sources), dict(reasons))
