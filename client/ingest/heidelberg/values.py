"""What do the values in Heidelberg's files mean: times, eyes, texts, greys?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from client.ingest.export import QUARANTINED, LeftOutError

DEVICE = "Heidelberg Spectralis"
MOST_B_SCANS = 4096  # of a volume; the densest have 512
_LARGEST_SIDE, _MOST_PIXELS = 16384, 2**25  # composites of several fields reach a few thousand a side
_YEARS = range(1990, 2101)  # before, no such device was built; after, a clock or a byte is wrong
_EYES = {"OD": "R", "R": "R", "OS": "L", "L": "L"}
_EMPTY = 1e30  # stands for "no value" are the largest float32, 3.4e38, and 3e38


@dataclass(frozen=True)
class Exam:
    """Whose scan it is, of which eye, and when: without these a scan is of no use.

    Attributes:
        patient: the id that the hospital gave, never the data base's own number.
        eye: R or L.
        acquired_at: by the clock of the site.
    """

    patient: str
    eye: str
    acquired_at: datetime


def known(patient: str, eye: str, acquired_at: datetime | None) -> Exam:
    """Raise ``LeftOutError`` unless patient, eye and time are stated; ``eye`` as written: OD, OS, R or L."""
    if not patient:
        raise LeftOutError(QUARANTINED, "has no patient id")
    if eye.upper() not in _EYES:
        raise LeftOutError(QUARANTINED, "does not say of which eye it is")
    if acquired_at is None:
        raise LeftOutError(QUARANTINED, "has no possible time")
    return Exam(patient, _EYES[eye.upper()], acquired_at)


def layout(fields: Mapping[str, tuple[str, int]], bytes_in_all: int) -> np.dtype[Any]:
    """The fields of a binary structure: type and offset in bytes of each. What is not named is not read."""
    formats, offsets = [kind for kind, _ in fields.values()], [offset for _, offset in fields.values()]
    return np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": bytes_in_all})


def is_size(height: int, width: int) -> bool:
    """Whether a scan can have this many rows and columns."""
    return 0 < height <= _LARGEST_SIDE and 0 < width <= _LARGEST_SIDE and height * width <= _MOST_PIXELS


def text(raw: bytes) -> str:
    """A fixed-width text: it ends at the first zero byte, and is in Windows' Western code page."""
    return bytes(raw).split(b"\0", 1)[0].decode("cp1252", "replace").strip()


def from_ticks(ticks: int, zone: str = "UTC") -> datetime | None:
    """A FILETIME, 100 ns since 1601 in UTC, by the clock of a zone; None for zero and the impossible."""
    utc = _since(datetime(1601, 1, 1), int(ticks) / 10)
    return None if utc is None else utc.replace(tzinfo=UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None)


def from_days(days: float) -> datetime | None:
    """An OLE date, days since 1899-12-30 by the local clock; None for zero and the impossible."""
    return _since(datetime(1899, 12, 30), float(days) * 86400e6) if math.isfinite(days) else None


def _since(epoch: datetime, microseconds: float) -> datetime | None:
    if not 0 < microseconds < 600 * 366 * 86400e6:
        return None
    return plausible(epoch + timedelta(microseconds=round(microseconds)))


def plausible(time: datetime) -> datetime | None:
    """The time, unless no such device can have told it."""
    return time if time.year in _YEARS else None


def number(value: Any) -> float | None:
    """A measured value; None where it stands for "no value"."""
    return float(value) if math.isfinite(value) and abs(value) < _EMPTY else None


def spacing(row_mm: Any, column_mm: Any) -> tuple[float, float] | None:
    """Size of a pixel in mm; None unless both are told and plausible."""
    sides = (number(row_mm), number(column_mm))
    if sides[0] is None or sides[1] is None or not all(0 < side < 1 for side in sides if side is not None):
        return None
    return sides[0], sides[1]


def grey(reflectance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The fourth root of the reflectance, which lies in [0, 1], as grey; black where there is none.

    Source: LibOctData, ``volread.cpp``; octSegmentation, ``HDEVolImporter.m``. HEYEX's own XML export takes another
    curve, for which eyepy's ``from_vol_intensity`` is fitted.
    """
    with np.errstate(invalid="ignore"):  # what is not a number compares as False
        measured = np.where(np.abs(reflectance) < _EMPTY, reflectance, np.float32(0))
    shown: NDArray[np.uint8] = np.rint(np.sqrt(np.sqrt(measured.clip(0, 1))) * np.float32(255)).astype(np.uint8)
    return shown


@cache
def e2e_greys() -> NDArray[np.uint8]:
    """The grey of each 16-bit value of a B-scan in an E2E file, (65536,).

    The values are floats without sign, of 6 bits exponent (bias 63) and 10 bits mantissa (LibOctData,
    ``he_gray_transform.cpp``; eyepy 0.21 takes the mantissa's bits in the reverse order, by which greys no longer grow
    with the values). The largest value marks where there is no image.
    """
    values = np.arange(2**16)
    reflectance = np.ldexp(1 + (values & 1023) / 1024, (values >> 10) - 63)
    reflectance[reflectance > 1.99] = 0
    greys = grey(reflectance.astype(np.float32))
    greys.flags.writeable = False
    return greys
