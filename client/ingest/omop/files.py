"""Which files of an export hold the tables of a CDM?

A folder, or a zip of one: ``PERSON.csv``, ``cdm/person.parquet``, or a table in parts as ``person/part-0.csv``, in any
case. A zip is never unpacked: an entry is read as a stream, and refused before that where it would inflate too far.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from client.ingest.export import ExportError

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
_DEEPEST = 3  # cdm/person/part-0.csv
_MOST_FILES = 100_000
_SMALL_BYTES = 2**20  # below, any ratio is harmless
_LARGEST_RATIO = 200  # tables inflate about tenfold; a zip bomb about a thousandfold
_MOST_BYTES = 2**41  # of all entries that are read


@dataclass(frozen=True)
class Part:
    """A file of a table; ``entry`` where it is in the zip at ``path``."""

    path: Path
    name: PurePosixPath
    entry: str | None = None

    @property
    def is_parquet(self) -> bool:
        return self.name.suffix.lower() == ".parquet"


def find_tables(export: Path, wanted: tuple[str, ...]) -> dict[str, tuple[Part, ...]]:
    """The parts of each wanted table that the export has.

    Raises:
        ExportError: no folder and no zip, a zip that is damaged or unsafe, a table that is there twice.
    """
    if export.is_dir():
        parts = list(_in_folder(export))
    elif export.is_file():
        parts = _in_zip(export, wanted)
    else:
        raise ExportError("OMOP export", "must be a folder or a zip that exists")
    named: dict[str, list[Part]] = {}
    for part in parts:
        table = table_of(part.name, wanted)
        if table is not None:
            named.setdefault(table, []).append(part)
    return {table: _once(table, found) for table, found in sorted(named.items())}


def table_of(name: PurePosixPath, wanted: tuple[str, ...]) -> str | None:
    """The table that a file is of, or is a part of; None for any other file."""
    hidden = any(piece.startswith((".", "_")) for piece in name.parts)  # ._PERSON.csv, __MACOSX, _SUCCESS
    if hidden or name.suffix.lower() not in SUFFIXES or len(name.parts) > _DEEPEST:
        return None
    for piece in reversed(name.parts[-2:]):
        table = PurePosixPath(piece.lower().removesuffix(name.suffix.lower())).name.split(".")[-1]  # dbo.person
        if table in wanted:
            return table
    return None


def _once(table: str, parts: list[Part]) -> tuple[Part, ...]:
    """The parts in order; they must be one file, or of one kind in one folder of the table's name."""
    whole = [part for part in parts if table_of(PurePosixPath(part.name.name), (table,))]
    kinds = {(part.name.parent, part.name.suffix.lower()) for part in parts}
    if len(parts) > 1 and (whole or len(kinds) > 1):
        remedy = "Leave one copy of it in the export."
        raise ExportError(f"OMOP export: table {table}", "must be there once", value=len(parts), remedy=remedy)
    return tuple(sorted(parts, key=lambda part: part.name.as_posix()))


def _in_folder(export: Path) -> Iterator[Part]:
    count = 0
    for folder, names, files in os.walk(export):  # which does not follow links to folders
        place = Path(folder).relative_to(export)
        if len(place.parts) >= _DEEPEST - 1:
            names.clear()
        for file in sorted(files):
            count += 1
            if count > _MOST_FILES:
                raise ExportError("OMOP export", f"must hold at most {_MOST_FILES} files")
            path = Path(folder) / file
            if path.is_file() and not path.is_symlink():
                yield Part(path, PurePosixPath(place.as_posix()) / file)


def _in_zip(export: Path, wanted: tuple[str, ...]) -> list[Part]:
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
    named = zip(entries, names, strict=True)
    files = [(entry, name) for entry, name in named if not entry.is_dir() and table_of(name, wanted)]
    for entry, _ in files:
        if entry.file_size > max(_SMALL_BYTES, _LARGEST_RATIO * entry.compress_size):
            rule = f"must inflate to at most {_LARGEST_RATIO} times its size"
            raise ExportError("OMOP export: an entry of the zip", rule, remedy="Give the folder of its tables.")
    if sum(entry.file_size for entry, _ in files) > _MOST_BYTES:
        raise ExportError("OMOP export", f"must inflate to at most {_MOST_BYTES} bytes")
    return [Part(export, name, entry.filename) for entry, name in files]


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
