"""Which files has an export, and may they be opened? Real files inside it, each accounted for; no link leads out."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from client.ingest.export import QUARANTINED, ExportError, LeftOutError, ScanOptions, Source

_FORMAT = 1  # raise it when what is made of a source changes, so that every source is read again

# Why records are not read out of what ``walk`` tells.
LINK, HIDDEN, UNLISTED = "a link, which is not followed", "a hidden file", "a folder that cannot be listed"

Stamps = tuple[tuple[int, int], ...]  # length in bytes and time of change in ns of each file


def export_root(export: Path, site: Path) -> Path:
    """The export, absolute and without links on the way to it.

    Raises:
        ExportError: it is not there, or it and the site folder are inside each other.
    """
    try:
        root = export.resolve(strict=True)
    except (OSError, RuntimeError):  # the latter for links in a circle
        raise ExportError(str(export), "must exist", remedy="Point to the folder or file that was exported.") from None
    if root.is_relative_to(site.resolve()) or site.resolve().is_relative_to(root):
        raise ExportError(str(export), "must be apart from the site folder", remedy="Move one of the two.")
    if not root.is_dir() and not root.is_file():
        raise ExportError(str(export), "must be a folder or a file")
    return root


def walk(root: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """All that is below a folder and no folder itself, in a fixed order; links are told, not followed. Or one file.

    Args:
        on_error: told of every folder that cannot be listed.
    """
    return map(Path, walk_names(root, on_error))


def walk_names(root: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[str]:
    """As ``walk``, for the many files of which only the name counts."""
    if not root.is_dir():
        yield os.fspath(root)
        return
    for folder, folders, files in os.walk(root, onerror=on_error):
        folders.sort()
        links = [name for name in folders if os.path.islink(f"{folder}{os.sep}{name}")]
        for name in sorted([*files, *links]):
            yield f"{folder}{os.sep}{name}"


def examine(source: Source, root: Path) -> Stamps:
    """Size and time of change of every file of a source, each of which may be opened safely.

    Raises:
        LeftOutError: one is not there, is no regular file (a pipe would never end), or lies outside the export.
    """
    inside = os.fspath(root if root.is_dir() else root.parent)
    return tuple(_examine(file, inside) for file in source.files)


def _examine(file: Path, inside: str) -> tuple[int, int]:
    try:
        status = _status(os.fspath(file), inside)
    except FileNotFoundError:
        raise LeftOutError(QUARANTINED, "is not there") from None
    except (OSError, ValueError) as error:  # links in a circle; a name with a zero byte
        raise LeftOutError(QUARANTINED, f"cannot be looked at ({type(error).__name__})") from None
    if status is None:
        raise LeftOutError(QUARANTINED, "lies outside the export")
    if not stat.S_ISREG(status.st_mode):
        raise LeftOutError(QUARANTINED, "is no regular file")
    return status.st_size, status.st_mtime_ns


def _status(file: str, inside: str) -> os.stat_result | None:
    """What the file system says of a file, or None when it is outside."""
    if not _has_links(file, inside):
        return os.lstat(file)
    real = os.path.realpath(file, strict=True)
    return os.stat(real) if real.startswith(inside + os.sep) else None


def _has_links(file: str, inside: str) -> bool:
    """Is there a link, or another way out, on the way to a file? Most often not, which is found out quickly."""
    if not file.startswith(inside + os.sep):
        return True
    path = inside
    for part in file[len(inside) + 1 :].split(os.sep):
        path = f"{path}{os.sep}{part}"
        if part == os.pardir or stat.S_ISLNK(os.lstat(path).st_mode):
            return True
    return False


def fingerprint(source: Source, options: ScanOptions) -> str:
    """Of all on which the scans of a source depend, but for the content of its files.

    A kind of export whose tables say more of a source has it in further fields of the source.
    """
    further = [
        (field.name, getattr(source, field.name))
        for field in dataclasses.fields(source)
        if field.name not in ("name", "files")
    ]
    names = [os.fsencode(file.name) for file in source.files]
    text = repr([_FORMAT, options.b_scans, options.mirror_left, options.issuers, options.time_zone, names, further])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
