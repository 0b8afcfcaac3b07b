"""Which resources does a FHIR export hold?

An export is a file or a folder of any depth: a ``.json`` holds a Bundle or one resource, an ``.ndjson`` one resource a
line, as bulk exports write them. One file, or one line, is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.ingest.export import QUARANTINED, SKIPPED, ExportError, LeftOut, LeftOutError
from client.ingest.fhir.json import Node, nodes, text
from client.ingest.progress import Meter
from client.ingest.sources import HIDDEN, LINK, UNLISTED, walk

MOST_FILE_BYTES = 2**26  # of a .json: its objects take some eight times as much memory
MOST_LINE_BYTES = 2**24
_MOST_FILES = 1_000_000


@dataclass(frozen=True)
class Resource:
    """A resource, and the URL by which the others of its bundle refer to it."""

    kind: str
    body: Node
    url: str | None = None


def fhir_files(export: Path) -> tuple[list[Path], list[LeftOut]]:
    """The files to be read, in order, and why each other one, and each link, is not."""
    if export.is_file():
        return [export], []
    if not export.is_dir():
        raise ExportError("FHIR export", "must be a file or a folder that exists")
    files: list[Path] = []
    left: list[LeftOut] = []
    for path in walk(export, lambda _: left.append(LeftOut(QUARANTINED, UNLISTED))):
        reason = _why_not(path, export)
        if reason:
            left.append(LeftOut(SKIPPED, reason))
        else:
            files.append(path)
        if len(files) + len(left) > _MOST_FILES:
            raise ExportError("FHIR export", f"must hold at most {_MOST_FILES} files")
    return files, left


def _why_not(path: Path, export: Path) -> str:
    """Why a path below the export is not read; "" for a file that is."""
    if path.is_symlink():
        return LINK
    if any(name.startswith((".", "__MACOSX")) for name in path.relative_to(export).parts):
        return HIDDEN
    if not path.is_file():
        return "no regular file"
    return "" if path.suffix.lower() in (".json", ".ndjson") else "a file that is neither .json nor .ndjson"


def resources(file: Path, meter: Meter) -> Iterator[Resource | LeftOut]:
    """Every resource of a file, and what of it is none."""
    try:
        if file.suffix.lower() == ".ndjson":
            yield from _lines(file, meter)
        elif (size := file.stat().st_size) > MOST_FILE_BYTES:
            meter.add(size)
            yield LeftOut(QUARANTINED, f"a .json file of more than {MOST_FILE_BYTES} bytes; .ndjson has no such limit")
        else:
            content = file.read_bytes()
            meter.add(len(content))
            yield from _document(content, "a .json file that is damaged")
    except OSError:
        yield LeftOut(QUARANTINED, "a file that cannot be read to its end")


def _lines(file: Path, meter: Meter) -> Iterator[Resource | LeftOut]:
    with file.open("rb") as stream:
        while line := stream.readline(MOST_LINE_BYTES):
            meter.add(len(line))
            if len(line) == MOST_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := stream.readline(MOST_LINE_BYTES)) and not rest.endswith(b"\n"):
                    meter.add(len(rest))
                meter.add(len(rest))
                yield LeftOut(QUARANTINED, f"a line of more than {MOST_LINE_BYTES} bytes")
            elif line.strip():
                yield from _document(line, "a line that is damaged")


def _document(content: bytes, reason: str) -> Iterator[Resource | LeftOut]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):  # ValueError: of Unicode, or of a number with thousands of digits, too
        yield LeftOut(QUARANTINED, reason)
        return
    yield from _resources(document)


def _resources(document: Any) -> Iterator[Resource | LeftOut]:
    """The resource, or those of a bundle and of the bundles in it."""
    waiting: list[tuple[Any, str | None]] = [(document, None)]
    while waiting:
        body, url = waiting.pop()
        kind = body.get("resourceType") if isinstance(body, dict) else None
        if not isinstance(kind, str):
            yield LeftOut(SKIPPED, "JSON that is no FHIR resource")
        elif kind != "Bundle":
            yield Resource(kind, body, url)
        elif body.get("type") == "history":
            yield LeftOut(SKIPPED, "a bundle of type history, which has what was replaced since")
        else:
            try:
                entries = [entry for entry in nodes(body, "entry") if "resource" in entry]
                waiting += [(entry["resource"], text(entry, "fullUrl")) for entry in reversed(entries)]
            except LeftOutError as error:
                yield LeftOut(QUARANTINED, f"Bundle: {error}")


def reference_id(reference: str, kind: str, names: dict[str, str]) -> str | None:
    """The id of a resource of a kind, from a reference to it; None where it is to another kind, or within a resource.

    Args:
        reference: ``Patient/1``, ``https://server/Patient/1/_history/2`` or ``urn:uuid:...``.
        names: ids of resources by the URL that their bundle gives them, where it does not end in the id.
    """
    if reference in names:
        return names[reference]
    if reference.startswith(("urn:uuid:", "urn:oid:")):
        return reference.split(":", 2)[2] or None
    pieces = reference.split("/_history/")[0].split("/")
    return pieces[-1] or None if len(pieces) > 1 and pieces[-2] == kind else None


def own_id(resource: Resource) -> str | None:
    """The id of a resource: its own, else the one in the URL that its bundle gives it."""
    found = text(resource.body, "id")
    return found or (reference_id(resource.url, resource.kind, {}) if resource.url else None)
