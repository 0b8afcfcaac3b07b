"""What does an importer hand over? The scans and the events of an export, and why the rest of it was left out.

An importer of scans is two functions. ``find`` lists the sources of an export: what is read by itself, as a rule one
file. ``read`` opens one source and yields its scans, one volume in memory at a time; it may run on several threads at
once. An importer of records is one function that yields tables of ``RECORDS``.
Identity is theirs to read and not theirs to keep: what they yield carries the hospital's own ids, which
``client.ingest.scans`` and ``client.ingest.records`` replace by pseudonyms before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.errors import FedretinaError
from shared.knobs import knob

SKIPPED, QUARANTINED = "skipped", "quarantined"  # not meant for us; meant for us, but not usable


class ExportError(FedretinaError):
    """An export, a mapping or an option with which nothing can be imported."""


@dataclass(frozen=True)
class Source:
    """One piece of an export that is read by itself.

    Attributes:
        name: its path within the export, with slashes: what people are shown, and what names it at the next import.
        files: what it is made of; when one of them changes, it is read again.
    """

    name: str
    files: tuple[Path, ...]


class Why(NamedTuple):
    """Under what the left out is counted; ``LeftOut`` says what each is."""

    outcome: str
    reason: str
    about: str = ""


@dataclass(frozen=True)
class LeftOut:
    """Something of an export that does not become a scan or an event.

    Attributes:
        outcome: ``SKIPPED`` or ``QUARANTINED``.
        reason: in fixed words, which ``check.json`` tells others: no text of an export or of a site's mapping.
        count: how many rows, where it stands for rows of a table.
        about: where in the export, such as a column or a task; for the site's own eyes.
    """

    outcome: str
    reason: str
    count: int = 1
    about: str = ""

    @property
    def why(self) -> Why:
        return Why(self.outcome, self.reason, self.about)

    @property
    def told(self) -> str:
        """The reason and what it is about, for people at the site."""
        return f"{self.reason} ({self.about})" if self.about else self.reason

    def __str__(self) -> str:
        return f"{self.outcome}: {self.count} x {self.told}"


class LeftOutError(Exception):
    """Raised by ``read`` when the whole source is left out."""

    def __init__(self, outcome: str, reason: str, about: str = "") -> None:
        super().__init__(reason)
        self.left_out = LeftOut(outcome, reason, about=about)


@dataclass(frozen=True)
class FilesRead:
    """What an importer of records that come in many files tells beside its tables.

    Attributes:
        count: files that were read.
        quarantined: those that gave nothing, because they are damaged.
    """

    count: int
    quarantined: int


@dataclass(frozen=True)
class Scan:
    """One B-scan or infrared scan, as an export has it.

    Attributes:
        patient: the hospital's id of the patient.
        key: names the scan within the hospital for good, such as a SOP instance UID and the number of a frame.
        eye: R or L.
        acquired_at: without zone, in the site's time zone.
        modality: OCT or IR.
        image: pixels (H, W), uint8 or uint16; or the bytes of a PNG or JPEG file, of which only the pixels are kept.
        partner: of an OCT, the key of the infrared scan that belongs to it, where the export says so or has both in one
            file. Where it has a name for the pair instead, that name, of both scans.
        is_central: of the B-scans of a volume, the one that is paired with the infrared scan.
        spacing_mm: (row, column) size of a pixel; None when unknown.
        quality: as the device states it.
    """

    patient: str
    key: str
    eye: str
    acquired_at: datetime
    modality: str
    image: NDArray[np.uint8] | NDArray[np.uint16] | bytes
    device: str = ""
    partner: str | None = None
    is_central: bool = True
    spacing_mm: tuple[float, float] | None = None
    quality: float | None = None


@dataclass(frozen=True)
class ScanOptions:
    """What a data engineer may choose about scans, on the command line; the time zone is the site folder's."""

    b_scans: int = knob(1, "B-scans kept of a volume: the central one, or as many as this, evenly spaced", ge=1, le=512)
    mirror_left: bool = knob(False, "mirror the scans of left eyes, so that both eyes look alike")
    pair_within_s: float = knob(
        60.0, "an OCT and an infrared scan of one eye, one device and this time apart belong together", unit="s", ge=0.0
    )
    issuers: bool = knob(False, "two issuers of patient ids (DICOM) are two hospitals: patients become id^^^issuer")
    time_zone: str = knob("UTC", "IANA name of the zone in which scans that state UTC are to be dated")


Find = Callable[[Path, Path | None], Iterator[Source]]  # the export, and the mapping file where one was given
Read = Callable[[Source, ScanOptions], Iterator["Scan | LeftOut"]]


@dataclass(frozen=True)
class ScanImporter:
    """How scans of one kind of export are read.

    Attributes:
        find: lists the sources; raises ``ExportError`` for an export or a mapping with which nothing can be done.
        read: yields the scans of a source; raises ``LeftOutError`` for one that is left out whole. Any other exception
            quarantines the source too, named by its type.
    """

    find: Find
    read: Read


# The columns of a table of records, as an export states them: nothing is converted or mapped yet.
# patient: str, the hospital's id. time: datetime64[us] without zone, NaT for what does not change.
# code: vocabulary//code, such as SNOMED//38341003, LOINC//8480-6, ICD9//401.9, SEX//M, MEDS_BIRTH, MEDS_DEATH.
# value: float, NaN where there is none. unit: str as written, "" where there is none.
RECORDS = ("patient", "time", "code", "value", "unit")
BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
OBSERVED_FROM, OBSERVED_UNTIL = "OBSERVATION//START", "OBSERVATION//END"  # between them nothing would be missed


def chosen_frames(count: int, wanted: int) -> tuple[list[int], int]:
    """Which B-scans of a volume of ``count`` are kept, evenly spaced about the centre, and which one is central.

    Of an even number the lower of the two middle ones is central. One frame: the central one.
    """
    central = (count - 1) // 2
    if wanted >= count:
        return list(range(count)), central
    step = count / wanted
    places = {min(int((place + 0.5) * step), count - 1) for place in range(wanted)}
    if wanted % 2:
        middle = min(places, key=lambda place: (abs(place - central), place))
        places = (places - {middle}) | {central}
    return sorted(places), min(places, key=lambda place: (abs(place - central), place))
