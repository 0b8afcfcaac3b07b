"""Which scans does an export of DICOM files hold?

OCT volumes (Ophthalmic Tomography) and infrared scans (Ophthalmic Photography); everything else is left out by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TypeGuard

from pydicom.dataset import Dataset
from pydicom.uid import UID

from client.ingest.dicom.document import Document, open_document, read_meta, silence
from client.ingest.dicom.format import Format, read_format
from client.ingest.dicom.header import acquired_at, device, eye, in_order, partner, patient, spacing_mm, text
from client.ingest.dicom.kinds import check_kind, modality_of_class
from client.ingest.dicom.pixels import decode_frame
from client.ingest.export import (
    QUARANTINED,
    SKIPPED,
    ExportError,
    LeftOut,
    LeftOutError,
    Scan,
    ScanImporter,
    ScanOptions,
    Source,
    chosen_frames,
)
from client.ingest.pictures import Pixels
from client.ingest.sources import walk
from shared.site_folder import OCT


def find(export: Path, mapping: Path | None) -> Iterator[Source]:
    """Every file of a folder, or the one file, whatever it is called.

    Raises:
        ExportError: a mapping, which is not needed.
    """
    if mapping is not None:
        raise ExportError("mapping", "must be left out: DICOM files say themselves what they are")
    for path in walk(export):
        if not path.is_symlink():
            yield Source(export.name if path == export else path.relative_to(export).as_posix(), (path,))


def read(source: Source, options: ScanOptions) -> Iterator[Scan | LeftOut]:
    """The scans of one file of an export; see ``read_dicom``."""
    return read_dicom(source.files[0], options)


def read_dicom(file: Path, options: ScanOptions) -> Iterator[Scan | LeftOut]:
    """The scans of a DICOM file: of an OCT volume the B-scans that are wanted, of a photograph the first frame.

    Raises:
        LeftOutError: nothing of the file is read, and why; no other exception.
    """
    silence()
    try:
        meta = read_meta(file)
        modality = modality_of_class(UID(meta.MediaStorageSOPClassUID))
        with open_document(file, meta) as document:
            check_kind(document.header, modality)
            yield from _scans(document, modality, options)
    except LeftOutError:
        raise
    except Exception as error:  # whatever a damaged file does to its reader
        reason = f"cannot be read: {error.strerror}" if _is_refused(error) else f"is damaged: {_kind(error)}"
        raise LeftOutError(QUARANTINED, reason) from None


def _scans(document: Document, modality: str, options: ScanOptions) -> Iterator[Scan | LeftOut]:
    given = read_format(document)
    frames = list(range(given.frames if modality == OCT else 1))
    # All headers first: when one of them is damaged, no scan of the file has been handed over yet.
    for frame, scan in list(_wanted(document.header, modality, frames, options)):
        image = _decoded(document, given, frame)
        yield image if isinstance(image, LeftOut) else scan(image=image)
    if given.frames > len(frames):
        yield LeftOut(SKIPPED, "is a further frame of an infrared scan", given.frames - len(frames))


def _wanted(
    header: Dataset, modality: str, frames: list[int], options: ScanOptions
) -> Iterator[tuple[int, partial[Scan]]]:
    """The frames that are kept, each with its scan, of which only the image is missing."""
    scan = _stated(header, modality, options)
    for side, its_frames in _by_eye(header, frames).items():
        ordered = in_order(header, its_frames)
        kept, central = chosen_frames(len(ordered), options.b_scans)
        for place in kept:
            frame = ordered[place]
            yield (
                frame,
                partial(
                    scan,
                    key=f"{text(header, 'SOPInstanceUID')}/{frame + 1}",
                    eye=side,
                    partner=partner(header, frame) if modality == OCT else None,
                    is_central=place == central,
                    spacing_mm=spacing_mm(header, frame),
                ),
            )


def _by_eye(header: Dataset, frames: list[int]) -> dict[str, list[int]]:
    """The frames of each eye: a file may hold a volume of both."""
    sides: dict[str, list[int]] = {}
    for frame in frames:
        side = eye(header, frame)
        if side is None:
            raise LeftOutError(QUARANTINED, "does not say of which eye it is")
        sides.setdefault(side, []).append(frame)
    return sides


def _stated(header: Dataset, modality: str, options: ScanOptions) -> partial[Scan]:
    """What all scans of a file share; raises ``LeftOutError`` where it does not say whose it is and of when."""
    who, when = patient(header, options.issuers), acquired_at(header)
    if not text(header, "SOPInstanceUID"):
        raise LeftOutError(QUARANTINED, "has no SOP instance UID")
    if not who:
        raise LeftOutError(QUARANTINED, "has no patient id")
    if when is None:
        raise LeftOutError(QUARANTINED, "does not say on which day and at what time it was taken")
    return partial(Scan, patient=who, acquired_at=when, modality=modality, device=device(header))


def _decoded(document: Document, given: Format, frame: int) -> Pixels | LeftOut:
    """The pixels of a frame; a damaged one leaves the others of its volume as they are."""
    try:
        return decode_frame(document, given, frame)
    except LeftOutError as error:
        return error.left_out
    except Exception:  # a decoder may raise anything
        return LeftOut(QUARANTINED, "has a frame that cannot be decoded")


def _is_refused(error: Exception) -> TypeGuard[OSError]:
    """Whether the system refused to read; a reader that meets nonsense raises ``OSError`` too, without a number."""
    return isinstance(error, OSError) and error.errno is not None


def _kind(error: Exception) -> str:
    """The type of an error and never its text, which may quote a patient's values."""
    return f"{type(error).__module__}.{type(error).__name__}".removeprefix("builtins.")


DICOM = ScanImporter(find, read)
