"""Which files of an export hold the tables of a CDM?

A folder, or a zip of one: ``PERSON.csv``, ``cdm/person.parquet``, or a table in parts as ``person/part-0.csv``, in any
case. A zip is never unpacked: an entry is read as a stream, and refused before that where it would inflate too far.
"""

from __future__ import annotations

import re
import shutil
import stat
import tempfile
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from client.ingest.export import ExportError
from client.ingest.sources import HIDDEN, LINK, UNLISTED, walk

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z")
_ENDINGS = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})?({'|'.join(map(re.escape, _COMPRESSED))})?$")
# Of CDM 5.3 and 5.4 beside those of which events are made.
_NOT_READ = frozenset(
    (
        "attribute_definition",
        "care_site",
        "cdm_source",
        "cohort",
        "cohort_definition",
        "concept_ancestor",
        "concept_class",
        "concept_relationship",
        "concept_synonym",
        "condition_era",
        "cost",
        "device_exposure",
        "domain",
        "dose_era",
        "drug_era",
        "drug_exposure",
        "drug_strength",
        "episode",
        "episode_event",
        "fact_relationship",
        "location",
        "metadata",
        "note",
        "note_nlp",
        "payer_plan_period",
        "procedure_occurrence",
        "provider",
        "relationship",
        "source_to_concept_map",
        "specimen",
        "visit_detail",
        "visit_occurrence",
        "vocabulary",
    )
)
_DEEPEST = 3  # cdm/person/part-0.csv
_MOST_FILES = 100_000
_SMALL_BYTES = 2**20  # below, any ratio is harmless
_LARGEST_RATIO = 200  # tables inflate about tenfold; a zip bomb about a thousandfold
_MOST_BYTES = 2**41  # of all entries that are read


@dataclass(frozen=True)
class Part:
    """A file of a table, of so many bytes; ``entry`` where it is in the zip at ``path``."""

    path: Path
    name: PurePosixPath
    bytes: int
    entry: str | None = None

    @property
    def is_parquet(self) -> bool:
        return self.name.suffix.lower() == ".parquet"


@dataclass(frozen=True)
class Found:
    """What an export holds: every file and link of it is in one of the three.

    Attributes:
        tables: the parts of each wanted table that the export has.
        unread: why further files of a wanted table are not read, with counts.
        others: why any other file is not, with counts.
    """

    tables: Mapping[str, tuple[Part, ...]]
    unread: Mapping[str, Counter[str]]
    others: Counter[str]


def find_tables(export: Path, wanted: tuple[str, ...]) -> Found:
    """The wanted tables of an export, and why the rest of it is not read.

    Raises:
        ExportError: no folder and no zip, a zip that is damaged or unsafe, a table that is there twice.
    """
    if export.is_dir():
        found = _in_folder(export, wanted)
    elif export.is_file():
        found = _in_zip(export, wanted)
    else:
        raise ExportError("OMOP export", "must be a folder or a zip that exists")
    named: dict[str, list[Part]] = {}
    unread: dict[str, Counter[str]] = {}
    others: Counter[str] = Counter()
    count = 0
    for table, item in found:
        if table is None:
            others[str(item)] += 1
        elif isinstance(item, Part):
            count += 1
            named.setdefault(table, []).append(item)
        else:
            unread.setdefault(table, Counter())[item] += 1
        if count > _MOST_FILES:
            raise ExportError("OMOP export", f"must hold at most {_MOST_FILES} files")
    return Found({table: _once(table, parts) for table, parts in sorted(named.items())}, unread, others)


def _table_of(name: PurePosixPath, tables: Collection[str]) -> str | None:
    """The table that a file or link is named after, or its folder is."""
    for piece in reversed(name.parts[-2:]):
        table = _ENDINGS.sub("", piece.lower()).split(".")[-1]  # dbo.person
        if table in tables:
            return table
    return None


def _judged(name: PurePosixPath, wanted: tuple[str, ...], is_link: bool) -> tuple[str | None, str]:
    """The wanted table that a name is of, and why it is not read; "" for one that is."""
    table, suffix = _table_of(name, wanted), name.suffix.lower()
    if is_link:
        return table, LINK
    if any(piece.startswith((".", "_")) for piece in name.parts):  # ._PERSON.csv, __MACOSX, _SUCCESS
        return None, HIDDEN
    if table is None:
        is_known = _table_of(name, _NOT_READ) is not None
        return None, "a table of the CDM that is not read" if is_known else "a file that is no table of the CDM"
    if suffix in _COMPRESSED:
        return table, "compressed by itself, which is not read: unpack it, or give a zip of all tables"
    if suffix not in SUFFIXES:
        return table, f"a file that is none of {', '.join(SUFFIXES)}"
    return table, "" if len(name.parts) <= _DEEPEST else f"more than {_DEEPEST - 1} folders deep"


def _once(table: str, parts: list[Part]) -> tuple[Part, ...]:
    """The parts in order; they must be one file, or of one kind in one folder of the table's name."""
    whole = [part for part in parts if _table_of(PurePosixPath(part.name.name), (table,))]
    kinds = {(part.name.parent, part.name.suffix.lower()) for part in parts}
    if len(parts) > 1 and (whole or len(kinds) > 1):
        remedy = "Leave one copy of it in the export."
        raise ExportError(f"OMOP export: table {table}", "must be there once", value=len(parts), remedy=remedy)
    return tuple(sorted(parts, key=lambda part: part.name.as_posix()))


def _in_folder(export: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str | None, Part | str]]:
    """Of each file and link the wanted table, and itself or why it is not read."""
    closed: list[OSError] = []
    for path in walk(export, closed.append):
        name = PurePosixPath(path.relative_to(export).as_posix())
        table, reason = _judged(name, wanted, path.is_symlink())
        if table is not None and not reason:
            yield (table, Part(path, name, path.stat().st_size) if path.is_file() else "no regular file")
        else:
            yield table, reason
    yield from ((None, UNLISTED) for _ in closed)


def _in_zip(export: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str | None, Part | str]]:
    """As ``_in_folder``; no entry is told before all were found to be safe."""
    try:
        with zipfile.ZipFile(export) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        remedy = "Give the folder of its tables, or make the zip again."
        raise ExportError("OMOP export", "must be a folder, or a zip that can be read", remedy=remedy) from None
    if len(entries) > _MOST_FILES:
        raise ExportError("OMOP export", f"must hold at most {_MOST_FILES} files", value=len(entries))
    names = [PurePosixPath(entry.filename.replace("\\", "/")) for entry in entries]
    if any(name.is_absolute() or ".." in name.parts or ":" in str(name)[:2] for name in names):
        raise ExportError("OMOP export", "must be a zip whose entries lie within it", remedy="Do not use this file.")
    named = [(entry, name) for entry, name in zip(entries, names, strict=True) if not entry.is_dir()]
    judged = [(entry, name, *_judged(name, wanted, _is_link(entry))) for entry, name in named]
    files = [entry for entry, _, table, reason in judged if table is not None and not reason]
    for entry in files:
        if entry.file_size > max(_SMALL_BYTES, _LARGEST_RATIO * entry.compress_size):
            rule = f"must inflate to at most {_LARGEST_RATIO} times its size"
            raise ExportError("OMOP export: an entry of the zip", rule, remedy="Give the folder of its tables.")
    if sum(entry.file_size for entry in files) > _MOST_BYTES:
        raise ExportError("OMOP export", f"must inflate to at most {_MOST_BYTES} bytes")
    for entry, name, table, reason in judged:
        yield table, reason or Part(export, name, entry.file_size, entry.filename)


def _is_link(entry: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(entry.external_attr >> 16)  # where the zip was made on a system that has links


@contextmanager
def opened(part: Part) -> Iterator[IO[bytes]]:
    """The bytes of a part, as a stream; a parquet file, which is read from its end, can be sought in."""
    if part.entry is None:
        with part.path.open("rb") as file:
            yield file
        return
    # No more is inflated than the entry declares, and a wrong checksum raises at its end.
    with zipfile.ZipFile(part.path) as archive, archive.open(part.entry) as stream:
        if not part.is_parquet:
            yield stream
            return
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(stream, file, 2**20)
            file.seek(0)
            yield file
