"""What scans does one series of an ``.E2E`` file hold: its localizer, and B-scans of whatever pattern?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from client.ingest.export import QUARANTINED, SKIPPED, LeftOut, LeftOutError, Scan, ScanOptions, chosen_frames
from client.ingest.heidelberg.e2e_records import (
    GREY_8,
    GREY_FLOAT_16,
    About,
    BScan,
    Image,
    Series,
    about,
    b_scans,
    en_face_names,
    images,
    pixels,
    series_ticks,
)
from client.ingest.heidelberg.values import DEVICE, MOST_B_SCANS, e2e_greys, from_ticks, known
from shared.site_folder import IR, OCT

_OCTA, _ANTERIOR = range(750, 760), range(800, 810)  # series types
_ANTERIOR_STRUCTURES = (6, 10, 11, 13)  # cornea, sclera, chamber angle, anterior segment
_INFRARED_NAMES, _INFRARED_EXAMINATION = {"IR", "INFRA-RED"}, 6


def read_series(series: Series, options: ScanOptions) -> Iterator[Scan | LeftOut]:
    """The localizer, then the chosen B-scans; raises ``LeftOutError`` when there is nothing to be used."""
    pictures, told, facts = images(series), b_scans(series), about(series)
    if not pictures and not told:
        raise LeftOutError(SKIPPED, "is a series without scans")
    _check_kind(facts)
    ticks = series_ticks(series) or next((one.ticks for one in told if from_ticks(one.ticks)), 0)
    is_infrared = _is_infrared(series, facts, has_b_scans=bool(told))
    partner = None
    for place, image in enumerate(image for image in pictures if image.type == GREY_8):
        scan = _en_face(series, facts, image, ticks, place, is_infrared=is_infrared)
        if partner is None and isinstance(scan, Scan):
            partner = scan.key
        yield scan
    of_slice = {image.record.slice: image for image in pictures if image.type == GREY_FLOAT_16}
    yield from _volume(series, facts, told, of_slice, partner, options)


def _check_kind(facts: About) -> None:
    if facts.type in _OCTA:
        raise LeftOutError(QUARANTINED, f"is OCT angiography (series type {facts.type}), which is not supported")
    if facts.type in _ANTERIOR or facts.structure in _ANTERIOR_STRUCTURES:
        raise LeftOutError(SKIPPED, "shows the anterior segment of the eye")


def _is_infrared(series: Series, facts: About, *, has_b_scans: bool) -> bool:
    """By what the series says of its en-face images; where it says nothing, the localizer of an OCT is infrared."""
    names, examinations = en_face_names(series), set(facts.examinations) - {0}
    if names:
        return bool(names & _INFRARED_NAMES)
    return _INFRARED_EXAMINATION in examinations if examinations else has_b_scans


def _en_face(
    series: Series, facts: About, image: Image, ticks: int, place: int, *, is_infrared: bool
) -> Scan | LeftOut:
    if not is_infrared:
        return LeftOut(SKIPPED, "is an en-face image other than infrared reflectance")
    try:
        exam = known(series.patient, facts.eye, from_ticks(ticks, series.zone))
        raw = pixels(series, image)
    except LeftOutError as error:
        return error.left_out
    return Scan(
        patient=exam.patient,
        key=f"heyex-e2e/{exam.patient}/{exam.eye}/{series.number}/{ticks}/IR/{place}",
        eye=exam.eye,
        acquired_at=exam.acquired_at,
        modality=IR,
        image=np.frombuffer(raw, np.uint8).reshape(image.height, image.width),
        device=DEVICE,
    )


def _volume(
    series: Series,
    facts: About,
    told: Sequence[BScan],
    of_slice: dict[int, Image],
    partner: str | None,
    options: ScanOptions,
) -> Iterator[Scan | LeftOut]:
    if not told:
        return
    placed, count = _placed(told)
    frames, central = chosen_frames(count, options.b_scans)
    for place in frames:
        one = placed.get(place)
        image = None if one is None else of_slice.get(one.slice)
        if one is None or image is None:
            yield LeftOut(QUARANTINED, "lacks a B-scan of its volume, or has it damaged")
            continue
        try:
            scan = _b_scan(series, facts, one, image)
        except LeftOutError as error:
            yield error.left_out
        else:
            yield replace(scan, partner=partner, is_central=place == central)


def _placed(told: Sequence[BScan]) -> tuple[dict[int, BScan], int]:
    """The B-scans by place, and how many there should be.

    When fewer are there than all of them state, each keeps the place that it states: so a file that is cut short gives
    the same scans as the whole one, as far as it has them. Otherwise they are counted.
    """
    counts, places = {one.count for one in told}, {one.place for one in told}
    stated = max(counts)
    is_stated = len(counts) == 1 and len(places) == len(told) and max(places) < stated <= MOST_B_SCANS
    if is_stated:
        return {one.place: one for one in told}, stated
    return dict(enumerate(told)), len(told)


def _b_scan(series: Series, facts: About, one: BScan, image: Image) -> Scan:
    exam = known(series.patient, facts.eye, from_ticks(one.ticks, series.zone))
    values = np.frombuffer(pixels(series, image), "<u2").reshape(image.height, image.width)
    return Scan(
        patient=exam.patient,
        key=f"heyex-e2e/{exam.patient}/{exam.eye}/{series.number}/{one.ticks}/OCT/{one.slice}",
        eye=exam.eye,
        acquired_at=exam.acquired_at,
        modality=OCT,
        image=e2e_greys()[values],
        device=DEVICE,
        quality=one.quality,
    )
