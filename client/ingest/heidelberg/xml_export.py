"""What scans does an XML export of HEYEX hold: one XML file and an image file for every scan?

Element names as in a Spectralis export (software 6.9), which eyepy's ``xml_format`` reads too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from client.ingest.export import QUARANTINED, SKIPPED, LeftOut, LeftOutError, Scan, ScanOptions, chosen_frames
from client.ingest.heidelberg.values import DEVICE, Exam, known, number, spacing
from client.ingest.heidelberg.xml_image import CONTEXT, acquisition_time, is_infrared, read_pixels, stated_number
from client.ingest.heidelberg.xml_tree import by_name, read_tree, told
from shared.site_folder import IR, OCT

_ANTERIOR_STRUCTURES = ("CORNEA", "SCLERA", "CHAMBER ANGLE", "ANTERIOR SEGMENT")
_B_SCAN = "OCT"
Files = dict[str, Path]


def read_xml(xml: Path, images: tuple[Path, ...], options: ScanOptions) -> Iterator[Scan | LeftOut]:
    """The infrared image and the chosen B-scans of every series of an export.

    Args:
        images: the files that it names, as far as they exist.

    Raises:
        LeftOutError: nothing of it can be used.
    """
    files = by_name(images)
    studies = [(who, study) for who in read_tree(xml).findall(".//Patient") for study in who.findall("Study")]
    series = [(who, study, one) for who, study in studies for one in study.findall("Series")]
    if not series:
        raise LeftOutError(SKIPPED, "has no series")
    for who, study, one in series:
        try:
            yield from _scans(who, study, one, files, options)
        except LeftOutError as error:
            yield error.left_out


def _scans(
    who: Element, study: Element, series: Element, files: Files, options: ScanOptions
) -> Iterator[Scan | LeftOut]:
    _check_kind(series)
    images = [(told(image, "ImageType/Type").upper() == _B_SCAN, image) for image in series.findall("Image")]
    partner = None
    for image in (image for is_b_scan, image in images if not is_b_scan):
        scan = _scan(who, study, series, image, files, IR)
        if partner is None and isinstance(scan, Scan):
            partner = scan.key
        yield scan
    b_scans = [image for is_b_scan, image in images if is_b_scan]
    if b_scans:
        frames, central = chosen_frames(len(b_scans), options.b_scans)
        for place in frames:
            yield _scan(who, study, series, b_scans[place], files, OCT, partner, is_central=place == central)


def _check_kind(series: Element) -> None:
    kind = f"{told(series, 'Type')} {told(series, 'ModalityProcedure')}".upper()
    if "OCTA" in kind or "ANGIO" in kind:
        raise LeftOutError(QUARANTINED, "is OCT angiography, which is not supported")
    if told(series, "ExaminedStructure").upper() in _ANTERIOR_STRUCTURES:
        raise LeftOutError(SKIPPED, "shows the anterior segment of the eye")


def _scan(
    who: Element,
    study: Element,
    series: Element,
    image: Element,
    files: Files,
    modality: str,
    partner: str | None = None,
    *,
    is_central: bool = True,
) -> Scan | LeftOut:
    if modality == IR and not is_infrared(image):
        return LeftOut(SKIPPED, "is an en-face image other than infrared reflectance")
    try:
        exam = _exam(who, study, series, image)
        pixels = read_pixels(image, files)
    except LeftOutError as error:
        return error.left_out
    scale = spacing(stated_number(image, f"{CONTEXT}/ScaleY"), stated_number(image, f"{CONTEXT}/ScaleX"))
    return Scan(
        patient=exam.patient,
        key=_key(exam, study, series, image, modality),
        eye=exam.eye,
        acquired_at=exam.acquired_at,
        modality=modality,
        image=pixels,
        device=_device(series),
        partner=partner,
        is_central=is_central,
        spacing_mm=scale,
        quality=number(stated_number(image, f"{CONTEXT}/ImageQuality")),
    )


def _exam(who: Element, study: Element, series: Element, image: Element) -> Exam:
    eye = told(image, "Laterality") or told(series, "Laterality")
    return known(told(who, "PatientID"), eye, acquisition_time(study, series, image))


def _key(exam: Exam, study: Element, series: Element, image: Element, modality: str) -> str:
    """Of UIDs, which a second export repeats; where an old software writes none, of the numbers of the data base."""
    uid = told(series, "SeriesUID") or f"{told(study, 'StudyUID')}/{told(study, 'ID')}"
    place = f"{told(series, 'ID')}/{told(image, 'ID') or told(image, 'ImageNumber')}"
    return f"heyex-xml/{exam.patient}/{exam.eye}/{uid}/{place}/{exam.acquired_at.isoformat()}/{modality}"


def _device(series: Element) -> str:
    model = told(series, "GeneralEquipment/ManufacturerModelName")
    return f"Heidelberg {model}" if model else DEVICE
