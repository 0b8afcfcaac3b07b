"""How does one source become pictures under pseudonyms? Read, checked, cleaned, written as drafts; on any thread."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from client.ingest.export import QUARANTINED, LeftOut, LeftOutError, Read, Scan, ScanOptions, Source
from client.ingest.journal import KeptScan
from client.ingest.pictures import Picture, PictureError, keep_pixels
from client.ingest.pseudonyms import Pseudonyms
from shared.errors import SiteError
from shared.site_folder import IMAGE_MODALITIES, IR

_LONGEST_DEVICE = 64  # characters
_EPOCH = datetime(1970, 1, 1)
_YEARS = range(1970, 2200)  # in which a retina may have been scanned


@dataclass(frozen=True)
class Draft:
    """A scan that is ready to take its place.

    Attributes:
        file: where its bytes are for now.
    """

    file: str
    scan: KeptScan


@dataclass(frozen=True)
class Desk:
    """What reading needs beside the source.

    Attributes:
        read: the importer's.
        kind: of the export; keys of two kinds are two pseudonyms.
        drafts: an empty folder on the disk of the site folder.
    """

    read: Read
    kind: str
    options: ScanOptions
    pseudonyms: Pseudonyms
    drafts: Path


def take(source: Source, identity: str, desk: Desk) -> tuple[list[Draft], list[LeftOut]]:
    """The scans of a source as drafts, and what of it is left out; no scan where reading fails on the way.

    Args:
        identity: id of the source; its drafts are named by it.

    Raises:
        SiteError: the site's disk cannot be written to.
    """
    drafts: list[Draft] = []
    left_out: list[LeftOut] = []
    for item in _items(source, desk):
        if isinstance(item, _Failure):
            for draft in drafts:
                os.unlink(draft.file)
            return [], [item.reason]
        if isinstance(item, LeftOut):
            left_out.append(item)
            continue
        try:
            picture = _checked(item, desk.options)
        except LeftOutError as error:
            left_out.append(error.left_out)
            continue
        file = os.path.join(desk.drafts, f"{identity}-{len(drafts)}")
        _write(file, picture.content)
        drafts.append(Draft(file, _kept(item, picture, identity, desk)))
    return drafts, left_out


@dataclass(frozen=True)
class _Failure:
    reason: LeftOut


def _items(source: Source, desk: Desk) -> Iterator[Scan | LeftOut | _Failure]:
    """What the importer yields; its exception as the last item, whatever it is: files may hold anything."""
    try:
        yield from desk.read(source, desk.options)
    except LeftOutError as error:
        yield _Failure(error.left_out)
    except Exception as error:
        yield _Failure(LeftOut(QUARANTINED, f"cannot be read ({type(error).__name__})"))


def _checked(scan: Scan, options: ScanOptions) -> Picture:
    """The picture of a scan that says all that the index needs; raises ``LeftOutError`` for another one."""
    faults = {
        "has no patient": not scan.patient.strip(),
        "has no key": not scan.key,
        "is of neither eye": scan.eye not in ("R", "L"),
        "is of no modality that is known": scan.modality not in IMAGE_MODALITIES,
        "has no plausible date": scan.acquired_at.year not in _YEARS,
        "has a time with a zone": scan.acquired_at.tzinfo is not None,
    }
    for reason, holds in faults.items():
        if holds:
            raise LeftOutError(QUARANTINED, reason)
    try:
        return keep_pixels(scan.image, options.mirror_left and scan.eye == "L")
    except PictureError as error:
        raise LeftOutError(QUARANTINED, str(error)) from None
    except Exception as error:
        raise LeftOutError(QUARANTINED, f"has a picture that cannot be read ({type(error).__name__})") from None


def _write(file: str, content: bytes) -> None:
    """No waiting for the disk: a picture that a power cut loses is missed at the next import and read again."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb", buffering=0) as stream:
            written = stream.write(content)
        if written != len(content):
            raise OSError(None, "No space left on device")
    except OSError as error:
        remedy = "Make room or mend the disk, then import again: what was done is kept."
        raise SiteError("imaging/files", "must be writable", value=error.strerror, remedy=remedy) from None


def _kept(scan: Scan, picture: Picture, source: str, desk: Desk) -> KeptScan:
    names, kind = desk.pseudonyms, f"scan {desk.kind}"
    image_id = names.name(kind, scan.key)
    spacing_row, spacing_column = _spacing(scan.spacing_mm)
    return KeptScan(
        image_id=image_id,
        subject_id=names.subject_id(scan.patient),
        eye=scan.eye,
        acquired_us=(scan.acquired_at - _EPOCH) // timedelta(microseconds=1),
        modality=scan.modality,
        device=" ".join(scan.device.encode("utf-8", "replace").decode().split())[:_LONGEST_DEVICE],
        path=f"{image_id[:2]}/{image_id}.{picture.suffix}",
        height=int(picture.height),
        width=int(picture.width),
        spacing_row=spacing_row,
        spacing_column=spacing_column,
        sha256=hashlib.sha256(picture.content).hexdigest(),
        quality=float(scan.quality) if scan.quality is not None and math.isfinite(scan.quality) else None,
        partner=names.name(kind, scan.partner) if scan.partner else image_id if scan.modality == IR else None,
        is_central=scan.is_central,
        bytes=len(picture.content),
        source=source,
    )


def _spacing(spacing_mm: tuple[float, float] | None) -> tuple[float, float] | tuple[None, None]:
    if spacing_mm is None or not all(math.isfinite(size) and size > 0 for size in spacing_mm):
        return None, None
    return float(spacing_mm[0]), float(spacing_mm[1])
