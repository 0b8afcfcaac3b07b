"""Which files of a Heidelberg export are read together, and by which reader?

A ``.vol`` and an ``.E2E`` file stand for themselves, an XML file with the images that it names. What a file is, its
first bytes say and not its name. Every other file is a source too, so that the import can tell why it was left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from client.ingest.export import QUARANTINED, SKIPPED, ExportError, LeftOut, LeftOutError, Scan, ScanOptions, Source
from client.ingest.heidelberg import e2e_directory, vol
from client.ingest.heidelberg.e2e import read_e2e
from client.ingest.heidelberg.vol import read_vol
from client.ingest.heidelberg.xml_export import read_xml
from client.ingest.heidelberg.xml_tree import by_name, image_file, read_tree
from client.ingest.sources import walk

_VOL = (vol.MAGIC, vol.MAGIC_OF_EYEPY)
_E2E = (e2e_directory.MAGIC, e2e_directory.MAGIC_OF_MULTIPLE)
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")  # of UTF-8 and UTF-16, before an XML's "<"
_OURS = {".vol", ".e2e", ".sdb", ".xml"}
_PICTURES = {".tif", ".tiff", ".png", ".bmp", ".jpg", ".jpeg"}


def find(export: Path, mapping: Path | None) -> Iterator[Source]:
    """The sources of an export, a folder or one file, in the order of their names.

    Raises:
        ExportError: no such export, or a mapping, which this importer has no use for.
    """
    if mapping is not None:
        remedy = "Leave it out: the files say whose they are."
        raise ExportError("mapping", "is not used for Heidelberg exports", remedy=remedy)
    if not export.exists():
        raise ExportError("export", "must be a folder or a file")
    if export.is_file():
        yield from _sources(export.parent, [export], sorted(export.parent.iterdir()))
        return
    for _, paths in groupby(walk(export), key=lambda path: path.parent):
        beside = list(paths)
        yield from _sources(export, beside, beside)


def _sources(root: Path, paths: list[Path], beside: list[Path]) -> Iterator[Source]:
    """The sources of some paths of a folder, of which all files are ``beside``. Links and pipes are none."""
    kinds = {path: _kind_or_none(path) for path in beside if not path.is_symlink() and path.is_file()}
    pictures = by_name(path for path, kind in kinds.items() if not kind)
    patients = tuple(path for path, kind in kinds.items() if kind == "e2e" and path.suffix.lower() == ".pdb")
    images = {path: _images(path, pictures) for path in paths if kinds.get(path) == "xml"}
    taken = {image for named in images.values() for image in named}
    for path in paths:
        if path not in kinds or path in taken:
            continue
        is_series_file = kinds[path] == "e2e" and path.suffix.lower() == ".sdb"
        more = patients if is_series_file else images.get(path, ())
        yield Source(path.relative_to(root).as_posix(), (path, *more))


def _images(xml: Path, pictures: dict[str, Path]) -> tuple[Path, ...]:
    """Those that an XML names and that lie beside it; none where it cannot be read, which ``read`` will say."""
    try:
        named = [image_file(image, pictures) for image in read_tree(xml).iter("Image")]
    except (LeftOutError, OSError):
        return ()
    return tuple(dict.fromkeys(path for path in named if path is not None))


def _kind(path: Path) -> str:
    """vol, e2e, xml, or nothing, by the first bytes."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(_VOL):
        return "vol"
    if head.startswith(_E2E):
        return "e2e"
    return "xml" if head.startswith(_MARKS) or head.lstrip().startswith(b"<") else ""


def _kind_or_none(path: Path) -> str:
    try:
        return _kind(path)
    except OSError:  # ``read`` will meet it again, and say so
        return ""


def read(source: Source, options: ScanOptions) -> Iterator[Scan | LeftOut]:
    """The scans of a source; raises ``LeftOutError`` for one that is left out whole."""
    path = source.files[0]
    kind = _kind(path)
    if kind == "vol":
        yield from read_vol(path, options)
    elif kind == "e2e":
        yield from read_e2e(path, source.files[1:], options)
    elif kind == "xml":
        yield from read_xml(path, source.files[1:], options)
    else:
        raise _unknown(path)


def _unknown(path: Path) -> LeftOutError:
    suffix = path.suffix.lower()
    if not path.stat().st_size:
        return LeftOutError(QUARANTINED if suffix in _OURS else SKIPPED, "is empty")
    if suffix in _OURS:
        return LeftOutError(QUARANTINED, f"is named {suffix}, but not of that format")
    if suffix in _PICTURES:
        return LeftOutError(SKIPPED, "is an image that no XML of the export names")
    return LeftOutError(SKIPPED, "is no file of a Heidelberg export")
