"""Which records does an ``.E2E`` file hold, and where?

A file is a head, chunks of a directory that are chained from the last to the first, and records between them. Layout:
eyepy's ``e2e_format``, LibE2E's ``MDbDir``, and the wiki of uocte ("Heidelberg File Format"). Every position is checked
before it is followed, so that a damaged file ends the walk and not the importer.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from client.ingest.export import QUARANTINED, LeftOutError
from client.ingest.heidelberg.values import layout

MAGIC, MAGIC_OF_MULTIPLE = b"CMDb", b"E2EMultipleVolumeFile"
_BYTES_BEFORE_MULTIPLE = 64  # the head of a file of several volumes; positions count from its end
_CHUNK = struct.Struct("<12sI20sIIII")  # magic, version, ?, entries, current, previous, ?
_FIRST_CHUNK = 36 + _CHUNK.size
_IDS = {"patient": ("<i4", 16), "study": ("<i4", 20), "series": ("<i4", 24), "slice": ("<i4", 28)}
_ENTRY = layout({"start": ("<u4", 4), "size": ("<u4", 8), **_IDS, "kind": ("<u4", 36)}, bytes_in_all=44)
_RECORD = struct.Struct("<12sIIIII4iHHII")  # magic, ?, position of the entry, of the record, size, ...


@dataclass(frozen=True)
class Record:
    """One record; ids are -1 where it belongs to something higher: patient > study > series > slice."""

    start: int
    size: int
    patient: int
    study: int
    series: int
    slice: int
    kind: int


@dataclass(frozen=True)
class Directory:
    """The records of a file; not ``complete`` when the chain of chunks is broken."""

    records: tuple[Record, ...]
    complete: bool
    offset: int


def read_directory(file: BinaryIO) -> Directory:
    """Raise ``LeftOutError`` for a file that is no E2E file."""
    head = file.read(_BYTES_BEFORE_MULTIPLE)
    offset = _BYTES_BEFORE_MULTIPLE if head.startswith(MAGIC_OF_MULTIPLE) else 0
    end = os.fstat(file.fileno()).st_size - offset
    main = _chunk_head(file, offset, 36, b"MDbMDir")
    if main is None:
        raise LeftOutError(QUARANTINED, "has a head that is cut short or damaged")
    most = end // _ENTRY.itemsize  # entries that the file has room for
    chunks, complete = _chained(file, offset, main[4], most)
    if not complete:
        chunks = {**_in_file_order(file, offset, most), **chunks}
    records = [record for entries in chunks.values() for record in _records(entries, end)]
    return Directory(tuple(sorted(records, key=lambda record: record.start)), complete, offset)


def _chunk_head(file: BinaryIO, offset: int, position: int, magic: bytes = b"MDbDir") -> Any:
    file.seek(offset + position)
    raw = file.read(_CHUNK.size)
    if len(raw) < _CHUNK.size or not raw.startswith(magic):
        return None
    return _CHUNK.unpack(raw)


def _chained(file: BinaryIO, offset: int, last: int, most: int) -> tuple[dict[int, Any], bool]:
    """The chunks by position, from the last one back, and whether the chain ends as it should."""
    chunks: dict[int, Any] = {}
    position = last
    while position and position not in chunks:
        head = _chunk_head(file, offset, position)
        entries = None if head is None else _entries(file, head[3], most)
        if entries is None:
            return chunks, False
        chunks[position], most, position = entries, most - len(entries), head[5]
    return chunks, position == 0


def _in_file_order(file: BinaryIO, offset: int, most: int) -> dict[int, Any]:
    """The chunks by position, from the first one on: each begins where the last record of the one before ends."""
    chunks: dict[int, Any] = {}
    position = _FIRST_CHUNK
    while (head := _chunk_head(file, offset, position)) is not None:
        entries = _entries(file, head[3], most)
        if entries is None:
            break
        chunks[position], most = entries, most - len(entries)
        ends = entries["start"].astype(np.int64) + entries["size"] + _RECORD.size
        beyond = int(ends[entries["size"] > 0].max(initial=0))
        if beyond <= position:  # only onwards, so that this ends
            break
        position = beyond
    return chunks


def _entries(file: BinaryIO, count: int, most: int) -> Any:
    """The entries of a chunk; None where they cannot all be there."""
    if count > most:
        return None
    raw = file.read(count * _ENTRY.itemsize)
    return np.frombuffer(raw, _ENTRY) if len(raw) == count * _ENTRY.itemsize else None


def _records(entries: Any, end: int) -> Iterator[Record]:
    """The used entries whose record lies within the file; the last chunk is filled up with empty ones."""
    for entry in entries[(entries["size"] > 0) & (entries["kind"] > 0)]:
        names = ("start", "size", "patient", "study", "series", "slice", "kind")
        record = Record(*(int(entry[name]) for name in names))
        if record.start + _RECORD.size + record.size <= end:
            yield record


def content(file: BinaryIO, directory: Directory, record: Record, most: int, skip: int = 0) -> bytes:
    """Up to ``most`` bytes of a record, after ``skip``; none where it is not what the directory says."""
    file.seek(directory.offset + record.start)
    raw = file.read(_RECORD.size)
    if len(raw) < _RECORD.size or not raw.startswith(b"MDbData"):
        return b""
    _, _, _, start, size, _, patient, study, series, part, _, _, kind, _ = _RECORD.unpack(raw)
    if record != Record(start, size, patient, study, series, part, kind):
        return b""
    file.seek(skip, os.SEEK_CUR)
    return file.read(max(0, min(most, record.size - skip)))
