"""What do the records of a series in an ``.E2E`` file say?

Types and offsets: eyepy's ``e2e_format``; series types, examinations and structures: HEYEX's data base, as private-eye
lists them. A record that is cut short or damaged says nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from client.ingest.export import QUARANTINED, LeftOutError
from client.ingest.heidelberg.e2e_directory import Directory, Record, content
from client.ingest.heidelberg.values import from_ticks, is_size, number

GREY_8, GREY_FLOAT_16 = 33620481, 35652097  # what an image record holds: an en-face image, a B-scan
_ABOUT, _TIME, _LOCALIZER, _EN_FACE, _B_SCAN, _IMAGE = (11, 59), 10005, 10025, 9007, 10004, 1073741824
_ABOUT_LAYOUT = struct.Struct("<IIIHcI")  # type, two examinations, pictures, eye, structure
_IMAGE_HEAD = struct.Struct("<IIIII")  # bytes, type, values, height, width


@dataclass(frozen=True)
class Series:
    """The records of one series.

    Attributes:
        patient: the hospital's id; "" where the file does not tell.
        number: of the series, in the data base.
        zone: IANA name of the site's, as the file counts time in UTC.
    """

    file: BinaryIO
    directory: Directory
    records: tuple[Record, ...]
    patient: str
    number: int
    zone: str

    def content(self, record: Record, most: int, skip: int = 0) -> bytes:
        return content(self.file, self.directory, record, most, skip)

    def first(self, *kinds: int) -> bytes:
        """What the first record of these kinds says that is about the series as a whole."""
        found = (record for record in self.records if record.kind in kinds and record.slice == -1)
        return next((raw for record in found if (raw := self.content(record, 4096))), b"")


@dataclass(frozen=True)
class About:
    """What kind of series it is; zeros and "" where that is not told. ``eye``: R or L."""

    type: int
    examinations: tuple[int, int]
    eye: str
    structure: int


def about(series: Series) -> About:
    """From the record of the series, or the one that stands for it in some files."""
    raw = series.first(*_ABOUT)
    if len(raw) < _ABOUT_LAYOUT.size:
        return About(0, (0, 0), "", 0)
    kind, first, second, _, eye, structure = _ABOUT_LAYOUT.unpack_from(raw)
    return About(kind, (first, second), eye.decode("ascii", "replace"), structure)


def series_ticks(series: Series) -> int:
    """When it was taken, as FILETIME; 0 where that is not told."""
    for kind, offset in ((_TIME, 16), (_LOCALIZER, 24)):
        raw = series.first(kind)[offset : offset + 8]
        if len(raw) == 8 and from_ticks(int.from_bytes(raw, "little")):
            return int.from_bytes(raw, "little")
    return 0


def en_face_names(series: Series) -> set[str]:
    """What the en-face images are called, in capitals: INFRA-RED, IR."""
    raw = series.first(_EN_FACE)
    count, length = struct.unpack_from("<II", raw) if len(raw) >= 8 else (0, 0)
    words = [raw[8 + place * length : 8 + (place + 1) * length] for place in range(min(count, 8))]
    return {word.decode("utf-16-le", "replace").split("\0")[0].strip().upper() for word in words} - {""}


@dataclass(frozen=True)
class BScan:
    """Of one B-scan: the number of its slice, its place among ``count``, when (FILETIME), and how good (dB)."""

    slice: int
    place: int
    count: int
    ticks: int
    quality: float | None


def b_scans(series: Series) -> list[BScan]:
    """In their order in the volume."""
    found = []
    for record in series.records:
        raw = series.content(record, 160) if record.kind == _B_SCAN else b""
        if len(raw) >= 96:
            count, place = struct.unpack_from("<II", raw, 64)
            (ticks,) = struct.unpack_from("<Q", raw, 88)
            quality = number(struct.unpack_from("<f", raw, 156)[0]) if len(raw) >= 160 else None
            found.append(BScan(record.slice, place, count, ticks, quality))
    return sorted(found, key=lambda b_scan: (b_scan.place, b_scan.slice))


@dataclass(frozen=True)
class Image:
    """Where an image is; of one of the two types that we know."""

    record: Record
    type: int
    height: int
    width: int


def images(series: Series) -> list[Image]:
    """Those whose record is large enough for what it claims to hold, in the order of slices."""
    found = []
    for record in series.records:
        raw = series.content(record, _IMAGE_HEAD.size) if record.kind == _IMAGE else b""
        if len(raw) == _IMAGE_HEAD.size:
            _, kind, _, height, width = _IMAGE_HEAD.unpack(raw)
            image = Image(record, kind, height, width)
            if is_size(height, width) and 0 < _bytes(image) <= record.size - _IMAGE_HEAD.size:
                found.append(image)
    return sorted(found, key=lambda image: (image.record.slice, image.record.start))


def pixels(series: Series, image: Image) -> bytes:
    """Row by row, one byte or two each; raise ``LeftOutError`` where they are not all there."""
    raw = series.content(image.record, _bytes(image), skip=_IMAGE_HEAD.size)
    if len(raw) < _bytes(image):
        raise LeftOutError(QUARANTINED, "has an image that is cut short or damaged")
    return raw


def _bytes(image: Image) -> int:
    return image.height * image.width * {GREY_8: 1, GREY_FLOAT_16: 2}.get(image.type, 0)
