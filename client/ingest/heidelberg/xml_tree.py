"""What does the XML of a Heidelberg export say, read so that no file can harm?

A document type is refused, and with it every entity: nothing is fetched and nothing expands. Only a root ``HEDX`` is
read on. Long lists that nobody here needs (layers, thickness) and the patient's name and birth date are not kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from client.ingest.export import QUARANTINED, SKIPPED, LeftOutError

_ROOT = "HEDX"
_DROPPED = {"Segmentation", "ThicknessGrid", "LastName", "FirstNames", "Birthdate", "Operator", "ReferringPhysician"}
_LARGEST_BYTES = 128 * 2**20  # a dense volume with eleven layers has some 30 MB
_MOST_KEPT = 200_000  # elements; the densest volumes have 20,000
_DEEPEST = 64


def read_tree(path: Path) -> Element:
    """The root of the export's XML, without what is dropped.

    Raises:
        LeftOutError: skipped where it is not Heidelberg's, quarantined where it cannot be read.
    """
    if path.stat().st_size > _LARGEST_BYTES:
        raise LeftOutError(QUARANTINED, f"is an XML of more than {_LARGEST_BYTES // 2**20} MiB")
    builder = _Builder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_document_type
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except (expat.ExpatError, ValueError, LookupError):  # the latter two: an encoding that there is not
        raise LeftOutError(QUARANTINED, "is an XML that is not well-formed") from None
    return builder.tree.close()


def _refuse_document_type(*_: object) -> None:
    raise LeftOutError(QUARANTINED, "is an XML with a document type, which no export has")


class _Builder:
    """Counts, drops and keeps; what expat calls."""

    def __init__(self) -> None:
        self.tree = TreeBuilder()
        self._depth, self._kept, self._dropping_from = 0, 0, 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth == 1 and tag != _ROOT:
            raise LeftOutError(SKIPPED, "is an XML of something else")
        if self._depth > _DEEPEST or self._kept > _MOST_KEPT:
            raise LeftOutError(QUARANTINED, "is an XML that is deeper or longer than any export's")
        if not self._dropping_from and tag in _DROPPED:
            self._dropping_from = self._depth
        if not self._dropping_from:
            self._kept += 1
            self.tree.start(tag, {})

    def data(self, text: str) -> None:
        if not self._dropping_from:
            self.tree.data(text)

    def end(self, tag: str) -> None:
        if not self._dropping_from:
            self.tree.end(tag)
        if self._dropping_from == self._depth:
            self._dropping_from = 0
        self._depth -= 1


def by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by their bare names, also in lower case, as Windows compares them."""
    found = list(paths)
    return {**{path.name.lower(): path for path in found}, **{path.name: path for path in found}}


def image_file(image: Element, files: dict[str, Path]) -> Path | None:
    """The file of an image, by its bare name whatever folders its address leads through: it lies beside the XML."""
    name = told(image, "ImageData/ExamURL").replace("\\", "/").rsplit("/", 1)[-1]
    names = (name, name.lower(), unquote(name), unquote(name).lower())
    return next((files[name] for name in names if name in files), None)


def told(element: Element, path: str) -> str:
    """The text at a path, "" where there is none."""
    return (element.findtext(path) or "").strip()
