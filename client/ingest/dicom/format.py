"""What does a DICOM file say about the format of its frames, and can that be true of a file of its size?"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pydicom.pixels.decoders.base import get_decoder

from client.ingest.dicom.document import Document
from client.ingest.export import QUARANTINED, LeftOutError

_MOST_PIXELS, _MOST_FRAMES = 2**24, 2**14
_PHOTOMETRIC = {1: ("MONOCHROME1", "MONOCHROME2"), 3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")}


@dataclass(frozen=True)
class Format:
    """What a header says about its frames; each attribute as the standard has it (PS3.3, C.7.6.3)."""

    frames: int
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    photometric: str
    planar: int

    @property
    def frame_bytes(self) -> int:
        return self.rows * self.columns * self.samples * self.bits_allocated // 8


def read_format(document: Document) -> Format:
    """The format of the frames, checked against the size of the file.

    Raises:
        LeftOutError: a format that is not read, or more pixels than the file can hold.
    """
    header = document.header
    stored = int(header.BitsStored)
    given = Format(
        frames=int(header.get("NumberOfFrames") or 1),
        rows=int(header.Rows),
        columns=int(header.Columns),
        samples=int(header.SamplesPerPixel),
        bits_allocated=int(header.BitsAllocated),
        bits_stored=stored,
        high_bit=int(header.get("HighBit", stored - 1)),
        is_signed=bool(header.PixelRepresentation),
        photometric=str(header.PhotometricInterpretation),
        planar=int(header.get("PlanarConfiguration") or 0),
    )
    _check_format(given)
    _check_size(document, given)
    return given


def _check_format(given: Format) -> None:
    if given.bits_allocated not in (8, 16) or not 1 <= given.bits_stored <= given.high_bit + 1 <= given.bits_allocated:
        raise LeftOutError(QUARANTINED, "has pixels that are not of 8 or 16 bits")
    if given.photometric not in _PHOTOMETRIC.get(given.samples, ()):
        raise LeftOutError(QUARANTINED, "has pixels that are neither grey nor red, green and blue")
    if not (1 <= given.rows * given.columns <= _MOST_PIXELS and 1 <= given.frames <= _MOST_FRAMES):
        raise LeftOutError(QUARANTINED, f"must have 1 to {_MOST_FRAMES} frames of at most {_MOST_PIXELS} pixels")


def _check_size(document: Document, given: Format) -> None:
    _check_decoder(document)
    there = document.stream.seek(0, os.SEEK_END) - document.offset
    if document.syntax.is_encapsulated:
        needed = 8 * given.frames
    else:
        needed = given.frame_bytes * given.frames
        there = min(there, document.length or 0)
    if there < needed:
        raise LeftOutError(QUARANTINED, "has fewer pixels than its header says")


def _check_decoder(document: Document) -> None:
    try:
        if get_decoder(document.syntax).is_available:
            return
    except NotImplementedError:
        pass
    name = document.syntax.name if document.syntax.name != document.syntax else "an unknown transfer syntax"
    raise LeftOutError(QUARANTINED, f"cannot be decoded: {name}")
