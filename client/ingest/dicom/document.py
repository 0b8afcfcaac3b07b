"""Where in a DICOM file are its header and its pixels, and can they be read without risk?

Only the elements of ``KEYWORDS`` are ever read: names, birth dates and addresses stay in the file.
"""

from __future__ import annotations

import io
import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from client.ingest.export import QUARANTINED, SKIPPED, LeftOutError

KEYWORDS = (
    *("SOPInstanceUID", "PatientID", "IssuerOfPatientID", "Manufacturer", "ManufacturerModelName"),
    *("AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "ContentDate", "ContentTime"),
    *("SeriesDate", "SeriesTime", "StudyDate", "StudyTime"),
    *("ImageLaterality", "Laterality", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ReferencedImageSequence", "SourceImageSequence", "OphthalmicFrameLocationSequence", "PixelSpacing"),
    *("ImageType", "SeriesDescription", "AnatomicRegionSequence", "AcquisitionDeviceTypeCodeSequence"),
    *("ChannelDescriptionCodeSequence", "LightPathFilterTypeStackCodeSequence", "LightPathFilterPassThroughWavelength"),
    *("IlluminationWaveLength", "ContrastBolusAgentSequence", "ContrastBolusAgent", "BurnedInAnnotation"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)
_READERS = r"pydicom|openjpeg|jpeg_ls|PIL\.|client\.ingest\.dicom"  # modules whose warnings are kept quiet
_TAGS = [tag for tag in map(tag_for_keyword, KEYWORDS) if tag is not None]
_PIXELS, _FIRST_PIXELS = 0x7FE00010, 0x7FE00008  # pixels of 8 or 16 bits; those of floating point come first
_LONG = ("OB", "OW", "UN")  # their length has four bytes, after two that are reserved
_UNDEFINED = 0xFFFFFFFF
_HEADER_BYTES = 2 * 2**20  # 512 B-scans need a quarter; this much in empty items takes 6 s and 300 MB
_INFLATED_BYTES = 256 * 2**20
_META_START = 128 + 4 + 12  # preamble, "DICM", and the element that states how long the rest of the group is


@dataclass(frozen=True)
class Document:
    """An open DICOM file.

    Attributes:
        header: the elements of ``KEYWORDS`` that it has.
        syntax: its transfer syntax.
        stream: where the pixels are read from.
        offset: of the value of the pixel data in ``stream``.
        length: of that value in bytes; None for encapsulated pixels.
        vr: OB or OW; None where the file does not state it.
    """

    header: Dataset
    syntax: UID
    stream: BinaryIO
    offset: int
    length: int | None
    vr: str | None


def silence() -> None:
    """Keep the readers' remarks on odd values out of the log: they quote values of patients.

    It is one filter of this process, set again where something took it away, as ``warnings.catch_warnings`` must not
    be used on several threads.
    """
    first = warnings.filters[0] if warnings.filters else None
    if first is None or getattr(first[3], "pattern", "") != _READERS:
        warnings.filterwarnings("ignore", module=_READERS)
    for name in ("pydicom", "pylibjpeg", "openjpeg", "jpeg_ls"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def read_meta(file: Path) -> FileMetaDataset:
    """The file meta information: class and transfer syntax.

    Raises:
        LeftOutError: it is no DICOM file, or does not state them.
    """
    with file.open("rb") as stream:
        if stream.read(132)[128:] != b"DICM":
            raise LeftOutError(SKIPPED, "is no DICOM file")
    meta = read_file_meta_info(file)
    if not (meta.get("MediaStorageSOPClassUID") and meta.get("TransferSyntaxUID")):
        raise LeftOutError(QUARANTINED, "does not state its class and transfer syntax")
    return meta


@contextmanager
def open_document(file: Path, meta: FileMetaDataset) -> Iterator[Document]:
    """Read the header up to the pixels; the file stays open inside the ``with``.

    Raises:
        LeftOutError: there are no pixels.
    """
    syntax = UID(meta.TransferSyntaxUID)
    with file.open("rb") as opened:
        stream = _inflated(opened, meta) if syntax == DeflatedExplicitVRLittleEndian else opened
        found: list[tuple[int, str | None, int]] = []

        def at_pixels(tag: int, vr: str | None, length: int) -> bool:
            if tag >= _FIRST_PIXELS:
                found.append((tag, vr, length))
            return bool(found)

        bounded = cast(BinaryIO, _Bounded(stream, _HEADER_BYTES))
        header = read_partial(bounded, at_pixels, force=True, specific_tags=list(_TAGS))
        if not found or found[0][0] != _PIXELS:
            raise LeftOutError(QUARANTINED, "has no pixels of 8 or 16 bits")
        _, vr, length = found[0]
        offset = stream.tell() + (12 if vr in _LONG else 8)
        yield Document(header, syntax, stream, offset, None if length == _UNDEFINED else length, vr)


def _inflated(opened: BinaryIO, meta: FileMetaDataset) -> BinaryIO:
    """The data set of a deflated file, which would inflate to a thousand times its size if we let it."""
    opened.seek(_META_START + int(meta.FileMetaInformationGroupLength))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(opened.read(_INFLATED_BYTES), _INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise LeftOutError(QUARANTINED, f"inflates to more than {_INFLATED_BYTES // 2**20} MiB")
    return io.BytesIO(content)


class _Bounded:
    """A stream of which only so many bytes may be read; skipping is free."""

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self._stream, self._left = stream, most
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise LeftOutError(QUARANTINED, f"has a header of more than {_HEADER_BYTES // 2**20} MiB")
        self._left -= size
        return self._stream.read(size)
