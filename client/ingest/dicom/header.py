"""What does the header of a DICOM file say of the patient, the eye, the time, the device and the partner of a frame?

A value may be stated for one frame, for all frames or for the file (functional groups, PS3.3, C.7.6.16).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import OphthalmicPhotography8BitImageStorage, OphthalmicPhotography16BitImageStorage

PHOTOGRAPHS = (OphthalmicPhotography8BitImageStorage, OphthalmicPhotography16BitImageStorage)
_TIMES = ("Acquisition", "Content", "Series", "Study")
# Date and at least the hour; a zone after it is left out, since the clock at the site showed what is before it.
_MOMENT = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)?(\d\d)?(?:\.(\d{1,6})\d*)?(?:[+-]\d{4})?")
_FIRST_YEAR = 1980  # there was no scanner before; 1900 and 0001 stand for unknown


def values(dataset: Dataset, keyword: str) -> list[Any]:
    """The values of an element, none where it is absent, empty, a sequence or raw bytes."""
    value = dataset.get(keyword)
    if value is None or isinstance(value, Sequence | bytes):
        return []
    return list(value) if isinstance(value, MultiValue | list) else [value]


def text(dataset: Dataset, keyword: str) -> str:
    """The first value of an element as text, "" where there is none."""
    return next((str(value).strip(" \0") for value in values(dataset, keyword)), "")


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence, none where it is absent or no sequence."""
    value = dataset.get(keyword)
    return list(value) if isinstance(value, Sequence) else []


def groups(header: Dataset, frame: int) -> list[Dataset]:
    """Where to look for what is said of a frame, counted from 0: its own functional groups, then those of all."""
    own = header.get("PerFrameFunctionalGroupsSequence")
    has_own = isinstance(own, Sequence) and frame < len(own)
    return [*([own[frame]] if has_own else []), *items(header, "SharedFunctionalGroupsSequence")[:1]]


def stated_of(header: Dataset, frame: int, keyword: str) -> list[Dataset]:
    """The items of a sequence in the functional groups of a frame."""
    return [item for group in groups(header, frame) for item in items(group, keyword)]


def patient(header: Dataset, issuers: bool) -> str:
    """The patient's id; where issuers are told apart ``id^^^issuer``, as HL7 writes it. "" where there is none."""
    # A backslash, which separates values, must not make one patient of two.
    name = "\\".join(str(value) for value in values(header, "PatientID")).strip(" \0")
    issuer = text(header, "IssuerOfPatientID") if issuers else ""
    return f"{name}^^^{issuer}" if name and issuer else name


def device(header: Dataset) -> str:
    """Manufacturer and model."""
    return f"{text(header, 'Manufacturer')} {text(header, 'ManufacturerModelName')}".strip()


def eye(header: Dataset, frame: int) -> str | None:
    """R or L; None where the file states both, none or another word."""
    stated = [text(header, "ImageLaterality"), text(header, "Laterality")]
    if not {"R", "L"} & {*stated}:
        stated += [text(item, "FrameLaterality") for item in stated_of(header, frame, "FrameAnatomySequence")]
    return next((word for word in stated if word in ("R", "L")), None)


def acquired_at(header: Dataset) -> datetime | None:
    """When the scan was taken, by the clock as written; None where no date comes with a time."""
    for written in (text(header, "AcquisitionDateTime"), *(_written(header, what) for what in _TIMES)):
        found = _MOMENT.fullmatch(written)
        moment = _moment(found) if found else None
        if moment is not None:
            return moment
    return None


def _written(header: Dataset, what: str) -> str:
    """Date and time as one; an old form of the standard has 2020.06.01 and 10:11:12."""
    return re.sub(r"\D", "", text(header, f"{what}Date")) + text(header, f"{what}Time").replace(":", "")


def _moment(found: re.Match[str]) -> datetime | None:
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    try:
        moment = datetime(year, month, day, hour, minute, second, int((found[7] or "").ljust(6, "0")))
    except ValueError:  # such as the 31st of February, or a leap second
        return None
    return moment if moment.year >= _FIRST_YEAR else None


def spacing_mm(header: Dataset, frame: int) -> tuple[float, float] | None:
    """(row, column) size of a pixel; None when unknown."""
    for place in (*stated_of(header, frame, "PixelMeasuresSequence"), header):
        try:
            size = [float(value) for value in values(place, "PixelSpacing")]
        except ValueError:  # such as a decimal comma
            continue
        if len(size) == 2 and min(size) > 0 and math.isfinite(sum(size)):
            return size[0], size[1]
    return None


def partner(header: Dataset, frame: int) -> str | None:
    """Key of the photograph on which the frame is located, None where the file names none."""
    for place in (*groups(header, frame), header):
        for reference in _references(place):
            uid = text(reference, "ReferencedSOPInstanceUID")
            if uid:
                return f"{uid}/1"
    return None


def _references(place: Dataset) -> Iterator[Dataset]:
    """What may be the localizer of an OCT: the one that the frame's location names; else a photograph."""
    yield from items(place, "OphthalmicFrameLocationSequence")
    others = items(place, "ReferencedImageSequence") + items(place, "SourceImageSequence")
    for derivation in items(place, "DerivationImageSequence"):
        others += items(derivation, "SourceImageSequence")
    yield from (other for other in others if text(other, "ReferencedSOPClassUID") in PHOTOGRAPHS)


def in_order(header: Dataset, frames: list[int]) -> list[int]:
    """Frames, counted from 0, as they lie on the retina: by dimension index, else by location, else as stored."""
    indices = [_numbers(header, frame, "FrameContentSequence", "DimensionIndexValues") for frame in frames]
    if len({len(index) for index in indices}) == 1 and indices[0]:
        return [frame for _, frame in sorted(zip(indices, frames, strict=True))]
    ends = [_numbers(header, frame, "OphthalmicFrameLocationSequence", "ReferenceCoordinates") for frame in frames]
    if {len(end) for end in ends} != {4}:
        return frames
    # Ends are (row, column, row, column) on the localizer: B-scans of a raster lie apart in one of the two.
    middles = np.asarray(ends).reshape(-1, 2, 2).mean(axis=1)
    across = middles[:, np.argmax(np.ptp(middles, axis=0))]
    return [frames[place] for place in np.argsort(across, kind="stable")]


def _numbers(header: Dataset, frame: int, sequence: str, keyword: str) -> tuple[float, ...]:
    for item in stated_of(header, frame, sequence):
        found = values(item, keyword)
        if found:
            return tuple(map(float, found))
    return ()
