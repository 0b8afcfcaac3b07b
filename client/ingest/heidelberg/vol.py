"""What scans does a ``.vol`` file hold, Heidelberg's raw export (HSF-OCT-1xx)?

Header of 2048 bytes, infrared image, and B-scans one after another, each with its own header. Layout: Spectralis
Special Function "Exporting Raw Data", rev. 4.0-1E, 2008, Art. No. 97 175-002, as quoted by eyepy's ``vol_format``,
heyexr's ``read_vol_header`` and octSegmentation's ``HDEVolImporter``. Only the fields below are read: never the date of
birth.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from client.ingest.export import QUARANTINED, LeftOut, LeftOutError, Scan, ScanOptions, chosen_frames
from client.ingest.heidelberg.values import (
    DEVICE,
    MOST_B_SCANS,
    Exam,
    from_days,
    from_ticks,
    grey,
    is_size,
    known,
    layout,
    number,
    spacing,
    text,
)
from shared.site_folder import IR, OCT

MAGIC, MAGIC_OF_EYEPY = b"HSF-OCT-", b"ep-v"  # eyepy writes the format too, under its own name
PATTERNS = range(6)  # 0 not told, 1 line, 2 circle, 3 volume, 4 fast volume, 5 radial
_HEADER_BYTES, _B_SCAN_HEADER_BYTES = 2048, 256
_SIZES = {"size_x": ("<u4", 12), "b_scans": ("<u4", 16), "size_z": ("<u4", 20), "scale_x": ("<f8", 24)}
_SLO = {"slo_x": ("<u4", 48), "slo_y": ("<u4", 52), "scale_x_slo": ("<f8", 56), "scale_y_slo": ("<f8", 64)}
_EXAM = {"eye": ("S4", 84), "exam_time": ("<u8", 88), "pattern": ("<i4", 96), "b_scan_header_bytes": ("<u4", 100)}
_IDS = {"id": ("S16", 104), "patient": ("S21", 140), "visit_date": ("<f8", 200)}
_HEADER = layout({**_SIZES, "scale_z": ("<f8", 40), **_SLO, **_EXAM, **_IDS}, _HEADER_BYTES)
_B_SCAN_HEADER = layout(
    {"magic": ("S12", 0), "header_bytes": ("<u4", 12), "quality": ("<f4", 56)}, _B_SCAN_HEADER_BYTES
)


def read_vol(path: Path, options: ScanOptions) -> Iterator[Scan | LeftOut]:
    """The infrared image and the chosen B-scans of a file; what is cut off or damaged is left out with a reason.

    Raises:
        LeftOutError: nothing of it can be used.
    """
    with path.open("rb") as file:
        raw = file.read(_HEADER_BYTES)
        if len(raw) < _HEADER_BYTES:
            raise LeftOutError(QUARANTINED, "is cut short within its header")
        header = np.frombuffer(raw, _HEADER)[0]
        _check(header)
        exam = known(text(header["patient"]), text(header["eye"]), _time(header, options.time_zone))
        key = f"heyex-vol/{exam.patient}/{exam.eye}/{text(header['id'])}/{int(header['exam_time'])}"
        partner = None
        for infrared in _infrared(file, header, exam, f"{key}/IR"):
            partner = infrared.key if isinstance(infrared, Scan) else None
            yield infrared
        start, header_bytes = _where_b_scans_lie(file, header, raw)
        frames, central = chosen_frames(int(header["b_scans"]), options.b_scans) if header["b_scans"] else ([], 0)
        for frame in frames:
            try:
                image, quality = _b_scan(file, header, start, header_bytes, frame)
            except LeftOutError as error:
                yield error.left_out
                continue
            yield Scan(
                patient=exam.patient,
                key=f"{key}/OCT/{frame}",
                eye=exam.eye,
                acquired_at=exam.acquired_at,
                modality=OCT,
                image=image,
                device=DEVICE,
                partner=partner,
                is_central=frame == central,
                spacing_mm=spacing(header["scale_z"], header["scale_x"]),
                quality=quality,
            )


def _check(header: Any) -> None:
    if header["pattern"] not in PATTERNS:
        reason = f"has a scan pattern that is none of the format's, 0 to {PATTERNS[-1]}"
        raise LeftOutError(QUARANTINED, reason, f"scan pattern {header['pattern']}")
    size_z, size_x, slo_y, slo_x = (int(header[name]) for name in ("size_z", "size_x", "slo_y", "slo_x"))
    has_infrared, has_b_scans = bool(slo_y or slo_x), bool(header["b_scans"])
    wrong = (has_infrared and not is_size(slo_y, slo_x)) or (has_b_scans and not is_size(size_z, size_x))
    if wrong or header["b_scans"] > MOST_B_SCANS:
        raise LeftOutError(QUARANTINED, "has a header of impossible sizes")


def _time(header: Any, zone: str) -> datetime | None:
    """The examination's time, or where there is none the visit's, which is often its day alone."""
    return from_ticks(header["exam_time"], zone) or from_days(header["visit_date"])


def _infrared(file: BinaryIO, header: Any, exam: Exam, key: str) -> Iterator[Scan | LeftOut]:
    height, width = int(header["slo_y"]), int(header["slo_x"])
    if not height * width:
        return
    pixels = file.read(height * width)
    if len(pixels) < height * width:
        yield LeftOut(QUARANTINED, "is cut short within the infrared image")
        return
    yield Scan(
        patient=exam.patient,
        key=key,
        eye=exam.eye,
        acquired_at=exam.acquired_at,
        modality=IR,
        image=np.frombuffer(pixels, np.uint8).reshape(height, width),
        device=DEVICE,
        spacing_mm=spacing(header["scale_y_slo"], header["scale_x_slo"]),
    )


def _where_b_scans_lie(file: BinaryIO, header: Any, raw: bytes) -> tuple[int, int]:
    """Where the first one begins, and the bytes of each one's header.

    Both headers state the latter. eyepy up to 0.21 writes a wrong one into the file's header: there the B-scan's holds.
    """
    start = _HEADER_BYTES + int(header["slo_x"]) * int(header["slo_y"])
    if not raw.startswith(MAGIC_OF_EYEPY):
        return start, int(header["b_scan_header_bytes"])
    file.seek(start)
    first = file.read(_B_SCAN_HEADER_BYTES).ljust(_B_SCAN_HEADER_BYTES, b"\0")
    return start, int(np.frombuffer(first, _B_SCAN_HEADER)[0]["header_bytes"])


def _b_scan(
    file: BinaryIO, header: Any, start: int, header_bytes: int, frame: int
) -> tuple[NDArray[np.uint8], float | None]:
    """Grey (size_z, size_x) and quality in dB."""
    height, width = int(header["size_z"]), int(header["size_x"])
    stride = header_bytes + 4 * height * width
    begin = start + frame * stride
    if begin + stride > os.fstat(file.fileno()).st_size:  # before a byte of it is read
        raise LeftOutError(QUARANTINED, "is cut short before the end of a B-scan")
    file.seek(begin)
    own = np.frombuffer(file.read(_B_SCAN_HEADER_BYTES), _B_SCAN_HEADER)[0]
    if not own["magic"].startswith((b"HSF-BS-", MAGIC_OF_EYEPY)) or header_bytes < _B_SCAN_HEADER_BYTES:
        raise LeftOutError(QUARANTINED, "has a B-scan with a damaged header")
    file.seek(begin + header_bytes)
    reflectance = np.frombuffer(file.read(4 * height * width), "<f4").reshape(height, width)
    return grey(reflectance), number(own["quality"])
