"""Does the DICOM importer take the right frames with the right pixels, and say why it leaves out the others?"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

from client.ingest.dicom import DICOM, read_dicom
from client.ingest.dicom.document import open_document, read_meta
from client.ingest.export import (
    QUARANTINED,
    SKIPPED,
    ExportError,
    LeftOut,
    LeftOutError,
    Scan,
    ScanOptions,
    Source,
    chosen_frames,
)
from client.ingest.scans import Counts, import_scans
from shared.site_folder import EVENTS, SiteFolder, write_table
from tests.client.ingest.dicom_files import LOCALIZER, code, frame_group, item, photograph, save, volume

ALL = ScanOptions(b_scans=512)
LOSSLESS = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEG2000Lossless,
    uid.JPEGLSLossless,
]
FUZZED = [*LOSSLESS, uid.JPEGLSNearLossless, uid.JPEGBaseline8Bit]
fuzz = settings(max_examples=50, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def pixels(frames: int = 5, dtype: Any = np.uint8, height: int = 36, width: int = 34) -> NDArray[Any]:
    """B-scans of which no two are alike, as smooth as images are."""
    values = np.add.outer(np.add.outer(np.arange(frames) * 17, np.arange(height) * 2), np.arange(width) * 3)
    spread: NDArray[Any] = (values * (np.iinfo(dtype).max / values.max())).astype(dtype)
    return spread


def scans(file: Path, options: ScanOptions = ALL) -> list[Scan]:
    """All that a file yields, which must be scans."""
    found = list(read_dicom(file, options))
    assert all(isinstance(scan, Scan) for scan in found), found
    return [scan for scan in found if isinstance(scan, Scan)]


def left_out(file: Path) -> LeftOut:
    """Why a file is left out whole."""
    with pytest.raises(LeftOutError) as caught:
        list(read_dicom(file, ALL))
    return caught.value.left_out


def stack(found: list[Scan]) -> NDArray[Any]:
    return np.stack([np.asarray(scan.image) for scan in found])


# Pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
def test_lossless_pixels_are_those_that_were_written(tmp_path: Path, syntax: uid.UID, dtype: Any) -> None:
    written = pixels(dtype=dtype)
    found = scans(save(volume(written), tmp_path / "a", syntax))
    np.testing.assert_array_equal(stack(found), written)
    assert stack(found).dtype == dtype


@pytest.mark.parametrize("written_as", ["RLE", "bigendian", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"])
def test_one_image_by_several_encoders_is_the_same(tmp_path: Path, written_as: str) -> None:
    plain, other = (_as_volume(name, tmp_path) for name in ("MR_small.dcm", f"MR_small_{written_as}.dcm"))
    np.testing.assert_array_equal(stack(scans(plain)), stack(scans(other)))
    signed = dcmread(plain).pixel_array.astype(int)
    np.testing.assert_array_equal(stack(scans(plain))[0], signed + 2**15)


@pytest.mark.parametrize("name", ["image_dfl.dcm", "693_J2KI.dcm", "JPEG2000.dcm", "examples_overlay.dcm"])
def test_images_of_other_writers_keep_their_contrast(tmp_path: Path, name: str) -> None:
    file = _as_volume(name, tmp_path)
    expected = dcmread(file).pixel_array.astype(float)
    found = stack(scans(file, ScanOptions()))[0]
    assert np.corrcoef(found.ravel(), expected.reshape(-1, *found.shape)[0].ravel())[0, 1] == pytest.approx(1.0)


def _as_volume(name: str, folder: Path) -> Path:
    """A file that comes with pydicom, its pixels as they are encoded, as if it were an OCT."""
    source = get_testdata_file(name, download=False)
    assert isinstance(source, str)
    dataset = dcmread(source)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.OphthalmicTomographyImageStorage
    dataset.ImageLaterality, dataset.PatientID, dataset.AcquisitionDateTime = "R", "P-17", "20200601101112"
    dataset.save_as(folder / name)
    return folder / name


def test_lossy_pixels_are_close(tmp_path: Path) -> None:
    written = pixels()
    near = stack(scans(save(volume(written), tmp_path / "near", uid.JPEGLSNearLossless))).astype(int)
    assert 0 < np.abs(near - written).max() <= 2
    jpeg = stack(scans(save(volume(written), tmp_path / "jpeg", uid.JPEGBaseline8Bit))).astype(int)
    assert np.abs(jpeg - written).max() <= 4
    dataset = volume(written)
    dataset.compress(uid.JPEG2000, j2k_cr=[8], generate_instance_uid=False)
    lossy = stack(scans(save(dataset, tmp_path / "j2k", uid.JPEG2000))).astype(int)
    assert 0 < np.abs(lossy - written).mean() <= 4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    allocated=st.sampled_from([8, 16]),
    unused=st.integers(0, 12),
    gap=st.integers(0, 12),
    is_signed=st.booleans(),
    is_inverted=st.booleans(),
)
@example(allocated=16, unused=4, gap=4, is_signed=True, is_inverted=True)
def test_stored_bits_fill_the_range(
    tmp_path: Path, allocated: int, unused: int, gap: int, is_signed: bool, is_inverted: bool
) -> None:
    unused = min(unused, allocated - 1)
    stored, gap = allocated - unused, min(gap, unused)
    wanted = np.linspace(0, 2**stored - 1, 36 * 34).astype(np.uint16).reshape(1, 36, 34)
    kept = 2**stored - 1 - wanted if is_inverted else wanted
    kept = kept ^ 1 << (stored - 1) if is_signed else kept
    garbage = (1 << gap) - 1  # below the stored bits
    written = ((kept << gap) | garbage).astype(np.uint8 if allocated == 8 else np.uint16)
    values: dict[str, Any] = {"BitsStored": stored, "HighBit": stored + gap - 1, "PixelRepresentation": int(is_signed)}
    values["PhotometricInterpretation"] = "MONOCHROME1" if is_inverted else "MONOCHROME2"
    (found,) = scans(save(volume(written, **values), tmp_path / "a"))
    assert isinstance(found.image, np.ndarray)
    assert found.image.dtype == (np.uint8 if stored <= 8 else np.uint16)
    full = 8 if stored <= 8 else 16
    np.testing.assert_array_equal(found.image, wanted[0] << (full - stored))


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGBaseline8Bit])
def test_three_equal_channels_are_grey(tmp_path: Path, syntax: uid.UID) -> None:
    grey = pixels(1)[0]
    (found,) = scans(save(photograph(np.stack([grey] * 3, axis=-1)), tmp_path / "a", syntax))
    assert np.abs(np.asarray(found.image).astype(int) - grey).max() <= (4 if syntax == uid.JPEGBaseline8Bit else 0)


def test_a_colour_image_is_left_out_though_called_infrared(tmp_path: Path) -> None:
    grey = pixels(1)[0]
    file = save(photograph(np.stack([grey, grey, grey // 2], axis=-1)), tmp_path / "a")
    assert list(read_dicom(file, ALL)) == [LeftOut(SKIPPED, "is a colour image")]


# Which frames


@given(order=st.permutations(range(5)), wanted=st.integers(1, 6), by=st.sampled_from(["index", "row", "column"]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_in_which_frames_are_stored_does_not_matter(
    tmp_path: Path, order: list[int], wanted: int, by: str
) -> None:
    written = pixels()
    frames = [frame_group(place, top=float(place)) for place in order]
    for place, frame in zip(order, frames, strict=True):
        if by != "index":
            del frame.FrameContentSequence
        else:
            del frame.OphthalmicFrameLocationSequence
        if by == "column":
            frame.OphthalmicFrameLocationSequence[0].ReferenceCoordinates = [0.0, float(place), 90.0, float(place)]
    dataset = volume(written[order], PerFrameFunctionalGroupsSequence=frames)
    found = scans(save(dataset, tmp_path / "a"), ScanOptions(b_scans=wanted))
    kept, central = chosen_frames(5, wanted)
    np.testing.assert_array_equal(stack(found), written[kept])
    assert [scan.is_central for scan in found] == [place == central for place in kept]
    assert [scan.key.rsplit("/")[-1] for scan in found] == [str(order.index(place) + 1) for place in kept]


def test_frames_without_a_place_stay_as_stored(tmp_path: Path) -> None:
    dataset = volume(pixels())
    del dataset.PerFrameFunctionalGroupsSequence
    np.testing.assert_array_equal(stack(scans(save(dataset, tmp_path / "a"))), pixels())


def test_a_volume_of_both_eyes_is_two(tmp_path: Path) -> None:
    frames = [
        frame_group(place, float(place), FrameAnatomySequence=[item(FrameLaterality="RL"[place % 2])])
        for place in range(5)
    ]
    dataset = volume(pixels(), ImageLaterality="B", PerFrameFunctionalGroupsSequence=frames)
    found = scans(save(dataset, tmp_path / "a"), ScanOptions(b_scans=1))
    assert [(scan.eye, scan.is_central) for scan in found] == [("R", True), ("L", True)]
    np.testing.assert_array_equal(stack(found), pixels()[[2, 1]])


def test_of_several_infrared_frames_the_first_is_taken(tmp_path: Path) -> None:
    dataset = photograph(pixels(1)[0])
    dataset.NumberOfFrames, dataset.PixelData = 3, pixels(3).tobytes()
    first, *others = read_dicom(save(dataset, tmp_path / "a"), ALL)
    assert isinstance(first, Scan)
    assert first.key == f"{LOCALIZER}/1"
    assert others == [LeftOut(SKIPPED, "is a further frame of an infrared scan", 2)]


def test_a_damaged_frame_leaves_the_others(tmp_path: Path) -> None:
    file = save(volume(pixels()), tmp_path / "a", uid.JPEG2000Lossless)
    dataset = dcmread(file)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=5))
    frames[3] = frames[3][:40] + b"\xff\xd9"
    dataset.PixelData = encapsulate(frames)
    dataset.save_as(file)
    found = list(read_dicom(file, ALL))
    assert [type(one) for one in found] == [Scan, Scan, Scan, LeftOut, Scan]
    assert isinstance(found[3], LeftOut)
    assert found[3].outcome == QUARANTINED


# What the header says


def change(**values: Any) -> Callable[[Dataset], None]:
    def apply(dataset: Dataset) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return apply


@pytest.mark.parametrize("side", ["R", "L"])
def test_laterality_is_found_in_each_place(tmp_path: Path, side: str) -> None:
    anatomy = [item(FrameLaterality=side)]
    shared = [item(FrameAnatomySequence=anatomy)]
    own = [frame_group(place, float(place), FrameAnatomySequence=anatomy) for place in range(5)]
    for place, dataset in enumerate(
        [
            volume(pixels(), ImageLaterality=side),
            volume(pixels(), ImageLaterality="", Laterality=side),
            volume(pixels(), ImageLaterality="B", SharedFunctionalGroupsSequence=shared),
            volume(pixels(), ImageLaterality="", PerFrameFunctionalGroupsSequence=own),
        ]
    ):
        assert {scan.eye for scan in scans(save(dataset, tmp_path / str(place)))} == {side}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ImageLaterality": "B"}, "does not say of which eye it is"),
        ({"ImageLaterality": None}, "does not say of which eye it is"),
        ({"PatientID": ""}, "has no patient id"),
        ({"PatientID": None}, "has no patient id"),
        ({"SOPInstanceUID": None}, "has no SOP instance UID"),
        ({"BurnedInAnnotation": "YES"}, "has text burned into its pixels"),
        ({"AcquisitionDateTime": None, "StudyTime": ""}, "does not say on which day and at what time it was taken"),
        ({"BitsAllocated": 32}, "has pixels that are not of 8 or 16 bits"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "has pixels that are neither grey nor red, green and blue"),
        ({"NumberOfFrames": 2**31 - 1}, "must have 1 to 16384 frames of at most 16777216 pixels"),
        ({"Rows": 65535, "Columns": 65535}, "must have 1 to 16384 frames of at most 16777216 pixels"),
        ({"Rows": 37}, "has fewer pixels than its header says"),
        ({"PixelData": None}, "has no pixels of 8 or 16 bits"),
        ({"Rows": None}, "is damaged: AttributeError"),
    ],
)
def test_what_is_missing_or_wrong_is_quarantined(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    dataset = volume(pixels())
    change(**changes)(dataset)
    assert left_out(_saved_as_is(dataset, tmp_path / "a")) == LeftOut(QUARANTINED, reason)


def _saved_as_is(dataset: Dataset, file: Path) -> Path:
    if "SOPInstanceUID" in dataset:
        return save(dataset, file)
    dataset.SOPInstanceUID = "1.2.3"
    content = save(dataset, file).read_bytes()
    element = b"\x08\0\x18\0UI\x06\x001.2.3\0"
    assert element in content
    file.write_bytes(content.replace(element, b""))
    return file


DAY = datetime(2020, 6, 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"AcquisitionDateTime": "20200601101112"}, DAY.replace(hour=10, minute=11, second=12)),
        (
            {"AcquisitionDateTime": "20200601101112.5+0900"},
            DAY.replace(hour=10, minute=11, second=12, microsecond=500000),
        ),
        ({"AcquisitionDateTime": "202006011011-0500"}, DAY.replace(hour=10, minute=11)),
        ({"AcquisitionDateTime": "20200601"}, DAY.replace(hour=9)),  # no time: that of the study
        ({"AcquisitionDateTime": "00010101000000"}, DAY.replace(hour=9)),  # stands for unknown
        ({"AcquisitionDateTime": "20200231101112"}, DAY.replace(hour=9)),  # no such day
        ({"AcquisitionDate": "20200601", "AcquisitionTime": "10"}, DAY.replace(hour=10)),
        ({"ContentDate": "20200601", "ContentTime": "1011"}, DAY.replace(hour=10, minute=11)),
        ({"ContentDate": "20200601", "SeriesDate": "20200601", "SeriesTime": "11"}, DAY.replace(hour=11)),
        ({}, DAY.replace(hour=9)),
    ],
)
def test_the_best_stated_time_is_taken_by_the_clock_as_written(
    tmp_path: Path, changes: dict[str, str], expected: datetime
) -> None:
    dataset = volume(pixels(1), AcquisitionDateTime="")
    change(**changes)(dataset)
    assert [scan.acquired_at for scan in scans(save(dataset, tmp_path / "a"))] == [expected]


def test_what_a_scan_carries(tmp_path: Path) -> None:
    oct_scan = scans(save(volume(pixels(1), IssuerOfPatientID="North"), tmp_path / "a"))[0]
    by_issuer = scans(tmp_path / "a", ScanOptions(issuers=True))[0]
    infrared = scans(save(photograph(pixels(1)[0]), tmp_path / "b"))[0]
    assert (oct_scan.modality, infrared.modality) == ("OCT", "IR")
    assert (oct_scan.patient, infrared.patient) == ("P-17", "P-17")
    assert by_issuer.patient == "P-17^^^North"
    assert oct_scan.device == infrared.device == "Heidelberg Engineering Spectralis"
    assert oct_scan.spacing_mm == pytest.approx((0.00387, 0.0113))
    assert infrared.spacing_mm == pytest.approx((0.0113, 0.0113))
    assert oct_scan.partner == infrared.key
    assert infrared.partner is None


def test_what_is_odd_but_not_needed_is_done_without(tmp_path: Path) -> None:
    dataset = photograph(pixels(1)[0], PatientID="A\\7")
    file = save(dataset, tmp_path / "a")
    file.write_bytes(file.read_bytes().replace(b"0.0113\\0.0113", b"0,0113\\0,0113"))
    (found,) = scans(file)
    assert found.spacing_mm is None
    assert found.patient == "A\\7"  # and not A


def reference(sop_class: uid.UID = uid.OphthalmicPhotography8BitImageStorage) -> Dataset:
    return item(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID="1.2.3")


@pytest.mark.parametrize(
    ("shared", "top", "partner"),
    [
        ({"OphthalmicFrameLocationSequence": [reference()]}, {}, "1.2.3/1"),
        ({"ReferencedImageSequence": [reference()]}, {}, "1.2.3/1"),  # AI-READI
        ({"DerivationImageSequence": [item(SourceImageSequence=[reference()])]}, {}, "1.2.3/1"),
        ({}, {"ReferencedImageSequence": [reference()]}, "1.2.3/1"),
        ({}, {"SourceImageSequence": [reference(uid.CTImageStorage), reference()]}, "1.2.3/1"),
        ({}, {"SourceImageSequence": [reference(uid.OphthalmicTomographyImageStorage)]}, None),
        ({}, {}, None),
    ],
)
def test_the_localizer_is_the_partner(
    tmp_path: Path, shared: dict[str, Any], top: dict[str, Any], partner: str | None
) -> None:
    dataset = volume(pixels(2), SharedFunctionalGroupsSequence=[item(**shared)], **top)
    del dataset.PerFrameFunctionalGroupsSequence
    assert [scan.partner for scan in scans(save(dataset, tmp_path / "a"))] == [partner, partner]


def test_the_frame_s_own_localizer_comes_first(tmp_path: Path) -> None:
    shared = [item(OphthalmicFrameLocationSequence=[reference()])]
    dataset = volume(pixels(2), SharedFunctionalGroupsSequence=shared)
    del dataset.PerFrameFunctionalGroupsSequence[1].OphthalmicFrameLocationSequence
    assert [scan.partner for scan in scans(save(dataset, tmp_path / "a"))] == [f"{LOCALIZER}/1", "1.2.3/1"]


def test_identity_changes_nothing(tmp_path: Path) -> None:
    dataset = volume(pixels(2))
    before = scans(save(dataset, tmp_path / "a"))
    for keyword in ("PatientName", "PatientBirthDate", "OperatorsName", "InstitutionName", "PatientComments"):
        setattr(dataset, keyword, "19400101" if keyword.endswith("Date") else "Roe^Richard")
    after = scans(save(dataset, tmp_path / "b"))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert dataclasses.replace(one, image=b"") == dataclasses.replace(other, image=b"")


def test_names_are_not_even_read(tmp_path: Path) -> None:
    file = save(volume(pixels(1)), tmp_path / "a")
    with open_document(file, read_meta(file)) as document:
        assert "PatientID" in document.header
        assert not {"PatientName", "PatientBirthDate"} & {element.keyword for element in document.header}


# What is meant for us


BLUE = [code("405738005", "SCT", "Blue")]
INFRARED = [code("414497003", "SCT", "Infrared")]
PLAIN = {"ImageType": ["ORIGINAL", "PRIMARY"]}


@pytest.mark.parametrize(
    "values",
    [
        {"ImageType": ["ORIGINAL", "PRIMARY", "", "INFRARED"]},
        {**PLAIN, "SeriesDescription": "Volume IR"},
        {**PLAIN, "SeriesDescription": "Near-Infrared reflectance"},
        {**PLAIN, "SeriesDescription": "Infra red"},
        {**PLAIN, "ChannelDescriptionCodeSequence": INFRARED},
        {**PLAIN, "LightPathFilterPassThroughWavelength": 820},
        {**PLAIN, "LightPathFilterTypeStackCodeSequence": [code("445169002", "SCT", "Infrared optical filter")]},
        {"SeriesDescription": "Color"},  # the image type says infrared
    ],
)
def test_infrared_photographs_are_taken(tmp_path: Path, values: dict[str, Any]) -> None:
    assert scans(save(photograph(pixels(1)[0], **values), tmp_path / "a"))[0].modality == "IR"
    assert scans(save(photograph(pixels(1, np.uint16)[0], **values), tmp_path / "b"))[0].modality == "IR"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (PLAIN, "is an ophthalmic photograph that does not say that it is infrared"),
        ({"ImageType": "ORIGINAL"}, "is an ophthalmic photograph that does not say that it is infrared"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "", "COLOR"]}, "is a colour photograph"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "", "REDFREE"]}, "is a photograph in one colour"),
        ({**PLAIN, "SeriesDescription": "Red-free"}, "is a photograph in one colour"),
        ({**PLAIN, "SeriesDescription": "FAF 30 IR"}, "is an autofluorescence photograph"),
        ({**PLAIN, "SeriesDescription": "ICGA"}, "is an angiogram"),
        ({**PLAIN, "ChannelDescriptionCodeSequence": BLUE, "SeriesDescription": "IR"}, "is a photograph in one colour"),
        ({"ContrastBolusAgentSequence": [code("7292004", "SCT", "Indocyanine green")]}, "is an angiogram"),
        (
            {**PLAIN, "LightPathFilterPassThroughWavelength": 488},
            "is an ophthalmic photograph that does not say that it is infrared",
        ),
        ({"AnatomicRegionSequence": [code("28726007", "SCT", "Cornea")]}, "shows the anterior segment of the eye"),
    ],
)
def test_other_photographs_are_skipped_by_name(tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    assert left_out(save(photograph(pixels(1)[0], **values), tmp_path / "a")) == LeftOut(SKIPPED, reason)


@pytest.mark.parametrize(
    "sop_class",
    [
        uid.CTImageStorage,
        uid.MRImageStorage,
        uid.EncapsulatedPDFStorage,
        uid.EnhancedSRStorage,
        uid.OphthalmicOpticalCoherenceTomographyEnFaceImageStorage,
        uid.OphthalmicOpticalCoherenceTomographyBscanVolumeAnalysisStorage,
        uid.WideFieldOphthalmicPhotographyStereographicProjectionImageStorage,
    ],
    ids=lambda sop_class: sop_class.keyword,
)
def test_other_classes_are_skipped_by_name(tmp_path: Path, sop_class: uid.UID) -> None:
    file = save(volume(pixels(1), SOPClassUID=sop_class), tmp_path / "a")
    assert left_out(file) == LeftOut(SKIPPED, f"is no OCT or infrared scan: {sop_class.name}")


def test_files_of_other_writers_are_skipped_by_name(tmp_path: Path) -> None:
    capture = highdicom.sc.SCImage(
        pixel_array=pixels(1)[0],
        photometric_interpretation="MONOCHROME2",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid="1.2.3",
        series_instance_uid="1.2.4",
        sop_instance_uid="1.2.5",
        series_number=1,
        instance_number=1,
        manufacturer="Maker",
        patient_orientation=("L", "P"),
    )
    capture.save_as(tmp_path / "capture")
    assert left_out(tmp_path / "capture").reason == "is no OCT or infrared scan: Secondary Capture Image Storage"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("DICOMDIR", "is no OCT or infrared scan: Media Storage Directory Storage"),
        ("CT_small.dcm", "is no OCT or infrared scan: CT Image Storage"),
        ("MR_small.dcm", "is no OCT or infrared scan: MR Image Storage"),
        ("reportsi.dcm", "is no OCT or infrared scan: Basic Text SR Storage"),
    ],
)
def test_real_files_of_other_devices_are_skipped_by_name(name: str, reason: str) -> None:
    file = get_testdata_file(name, download=False)
    assert isinstance(file, str)
    assert left_out(Path(file)) == LeftOut(SKIPPED, reason)


@pytest.mark.parametrize("content", [b"", b"plain text", b"\0" * 131, b"\0" * 128 + b"DICX" + b"\0" * 500])
def test_what_is_no_dicom_is_skipped(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.dcm").write_bytes(content)
    assert left_out(tmp_path / "a.dcm") == LeftOut(SKIPPED, "is no DICOM file")


@pytest.mark.parametrize("keyword", ["MediaStorageSOPClassUID", "TransferSyntaxUID"])
def test_a_file_that_does_not_say_what_it_is_is_quarantined(tmp_path: Path, keyword: str) -> None:
    dataset = dcmread(save(volume(pixels(1)), tmp_path / "a"))
    delattr(dataset.file_meta, keyword)
    dataset.save_as(tmp_path / "b", implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert left_out(tmp_path / "b") == LeftOut(QUARANTINED, "does not state its class and transfer syntax")


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.MPEG2MPML, uid.UID("1.2.3.4")])
def test_what_cannot_be_decoded_says_so(tmp_path: Path, syntax: uid.UID) -> None:
    file = save(volume(pixels(), PixelData=encapsulate([b"\xff\xd8\xff\xd9"] * 5)), tmp_path / "a")
    content = file.read_bytes()
    old, new = b"1.2.840.10008.1.2.1\0", syntax.encode()
    group = struct.unpack("<I", content[140:144])[0] + len(new) + len(new) % 2 - len(old)
    content = content[:140] + struct.pack("<I", group) + content[144:]
    element = struct.pack("<H", len(old)) + old
    changed = struct.pack("<H", len(new) + len(new) % 2) + new + b"\0" * (len(new) % 2)
    file.write_bytes(content.replace(element, changed, 1))
    name = syntax.name if syntax != "1.2.3.4" else "an unknown transfer syntax"
    assert left_out(file) == LeftOut(QUARANTINED, f"cannot be decoded: {name}")


# An export


def test_every_file_of_an_export_is_accounted_for(tmp_path: Path) -> None:
    export, outside = tmp_path / "export", save(volume(pixels(1)), tmp_path / "outside.dcm")
    save(volume(pixels(), AcquisitionDateTime="20200601101113"), export / "b" / "1")
    save(photograph(pixels(1)[0]), export / "x.dcm" / "IM.0001")  # a folder that is called like a file
    save(volume(pixels(1), SOPClassUID=uid.CTImageStorage), export / "ct")
    save(volume(pixels(1), ImageLaterality="B"), export / "both")
    (export / "notes.txt").write_text("notes")
    (export / "empty.dcm").touch()
    (export / "link").symlink_to(outside)
    (export / "loop").symlink_to(export)
    os.mkfifo(export / "pipe")
    (export / os.fsdecode(b"caf\xe9")).write_bytes(b"")
    site = tmp_path / "site"
    site.mkdir()
    (site / "dataset.yaml").write_text("site: north\n")
    write_table(site / "events.parquet", pd.DataFrame(columns=EVENTS.names), EVENTS)

    summary = import_scans(site, export, DICOM, "dicom", options=ScanOptions(b_scans=3), threads=2)

    assert summary.sources == Counts(imported=2, skipped=6, quarantined=2)
    assert summary.pairs == 1  # by the localizer: the times are a second apart
    assert {(one.reason, one.count) for one in summary.reasons} == {
        ("is no DICOM file", 3),
        ("is a link", 2),
        ("is no OCT or infrared scan: CT Image Storage", 1),
        ("is no regular file", 1),
        ("does not say of which eye it is", 1),
    }
    images = SiteFolder(site).images()
    assert sorted(images["modality"]) == ["IR", "OCT", "OCT", "OCT"]
    kept = [np.asarray(Image.open(SiteFolder(site).image_files / path)) for path in images["path"]]
    written = [*pixels()[chosen_frames(5, 3)[0]], pixels(1)[0]]
    assert {one.tobytes() for one in kept} == {one.tobytes() for one in written}
    for file in site.rglob("*"):
        if file.is_file() and "state" not in file.relative_to(site).parts:
            assert not re.search(rb"Doe|P-17|IM\.0001|1\.2\.826", file.read_bytes()), file.name


def test_one_file_is_an_export(tmp_path: Path) -> None:
    file = save(volume(pixels(1)), tmp_path / "one")
    assert list(DICOM.find(file, None)) == [Source("one", (file,))]
    assert len(list(DICOM.read(Source("one", (file,)), ALL))) == 1


def test_a_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="mapping must be left out"):
        list(DICOM.find(tmp_path, tmp_path / "map.yaml"))


def test_what_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        found = left_out(tmp_path / "Doe.dcm")
    assert found == LeftOut(QUARANTINED, "cannot be read: Permission denied")
    assert left_out(tmp_path / "Doe.dcm") == LeftOut(QUARANTINED, "cannot be read: No such file or directory")


def test_odd_values_are_not_logged_on_any_thread(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = save(volume(pixels(1), SpecificCharacterSet="ISO_IR 100"), tmp_path / "a")
    content = file.read_bytes().replace(b"P-17", b"P\xff\x07\\").replace(b"20200601", b"2020O6O1")
    file.write_bytes(content.replace(b"ISO_IR 100", b"ISO_IR 999"))
    with caplog.at_level(logging.DEBUG), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: left_out(file).reason, range(20)))
    assert set(found) == {"does not say on which day and at what time it was taken"}
    assert caplog.text == ""


# Files that mean harm, and damaged ones


def jpeg_of(rows: int, columns: int, frame: bytes, marker: bytes, place: int) -> bytes:
    """A frame that claims another size."""
    start = frame.index(marker) + place
    return frame[:start] + struct.pack(">HH", rows, columns) + frame[start + 4 :]


@pytest.mark.parametrize(
    ("syntax", "marker", "place"),
    [(uid.JPEGLSLossless, b"\xff\xf7", 5), (uid.JPEGBaseline8Bit, b"\xff\xc0", 5)],
)
def test_a_frame_that_claims_to_be_enormous_is_not_decoded(
    tmp_path: Path, syntax: uid.UID, marker: bytes, place: int
) -> None:
    file = save(volume(pixels(1)), tmp_path / "a", syntax)
    dataset = dcmread(file)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = encapsulate([jpeg_of(65500, 65500, frame, marker, place)])
    dataset.save_as(file)
    assert list(read_dicom(file, ALL)) == [LeftOut(QUARANTINED, "has a frame of another size than its header says")]


def test_an_enormous_jpeg_2000_frame_is_not_decoded(tmp_path: Path) -> None:
    file = save(volume(pixels(1)), tmp_path / "a", uid.JPEG2000Lossless)
    dataset = dcmread(file)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    sizes = struct.pack(">II", 60000, 60000)  # of the image, and of a tile
    dataset.PixelData = encapsulate([frame[:8] + sizes + frame[16:24] + sizes + frame[32:]])
    dataset.save_as(file)
    (found,) = read_dicom(file, ALL)
    assert found == LeftOut(QUARANTINED, "has a frame of another size than its header says")


def test_a_long_run_in_rle_is_not_expanded(tmp_path: Path) -> None:
    file = save(volume(pixels(1)), tmp_path / "a", uid.RLELossless)
    dataset = dcmread(file)
    run = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 2**20
    dataset.PixelData = encapsulate([run])
    dataset.save_as(file)
    assert list(read_dicom(file, ALL)) == [LeftOut(QUARANTINED, "has a frame of another size than its header says")]


def test_a_deflated_bomb_is_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.ingest.dicom.document._INFLATED_BYTES", 2**20)
    file = save(volume(pixels(1)), tmp_path / "a", uid.DeflatedExplicitVRLittleEndian)
    assert len(scans(file)) == 1
    content = file.read_bytes()
    start = 144 + struct.unpack("<I", content[140:144])[0]
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = zlib.decompress(content[start:], -zlib.MAX_WBITS) + b"\0" * 2**22
    file.write_bytes(content[:start] + deflate.compress(bomb) + deflate.flush())
    assert left_out(file) == LeftOut(QUARANTINED, "inflates to more than 1 MiB")


def test_a_frame_without_its_end_is_not_decoded(tmp_path: Path) -> None:
    file = save(volume(pixels(1)), tmp_path / "a", uid.JPEGLSLossless)
    dataset = dcmread(file)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: len(frame) // 2]])
    dataset.save_as(file)
    assert list(read_dicom(file, ALL)) == [LeftOut(QUARANTINED, "has a frame that is cut off")]


def inserted(file: Path, elements: bytes) -> Path:
    """The file with elements before all others."""
    content = file.read_bytes()
    start = 144 + struct.unpack("<I", content[140:144])[0]
    file.write_bytes(content[:start] + elements + content[start:])
    return file


SEQUENCE = b"\x08\x00\x05\x10SQ\0\0\xff\xff\xff\xff"
ITEM = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"


def test_sequences_without_end_are_given_up(tmp_path: Path) -> None:
    file = inserted(save(volume(pixels(1)), tmp_path / "deep"), (SEQUENCE + ITEM) * 20_000)
    assert left_out(file).reason == "is damaged: RecursionError"


def test_a_header_of_countless_items_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.ingest.dicom.document._HEADER_BYTES", 2**17)
    file = save(volume(pixels(1)), tmp_path / "many")
    assert len(scans(file)) == 1
    empty = b"\xfe\xff\x00\xe0\0\0\0\0"
    assert left_out(inserted(file, SEQUENCE + empty * 2**15)).outcome == QUARANTINED


def test_an_element_as_long_as_the_file_is_given_up(tmp_path: Path) -> None:
    file = inserted(save(volume(pixels(1)), tmp_path / "long"), b"\x08\x00\x08\x00UN\0\0\xf0\xff\xff\xff")
    assert left_out(file) == LeftOut(QUARANTINED, "has a header of more than 2 MiB")


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("genuine")
    files = [save(volume(pixels(3)), folder / syntax.keyword, syntax) for syntax in FUZZED]
    return [*files, save(photograph(pixels(1)[0]), folder / "photograph")]


def _is_accounted_for(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    found: list[Scan | LeftOut] = []
    try:
        for one in read_dicom(file, ScanOptions(b_scans=2)):
            found.append(one)
    except LeftOutError as error:
        assert found == []  # left out whole
        found = [error.left_out]
    assert found
    for one in found:
        if isinstance(one, LeftOut):
            assert not re.search("Doe|P-17", one.reason)
        else:
            assert isinstance(one.image, np.ndarray)
            assert one.image.shape == (36, 34) or one.image.size <= 2**24


files, places = st.integers(0, len(FUZZED)), st.floats(0, 1, exclude_max=True)


@fuzz
@given(which=files, end=places)
def test_truncated_files_are_accounted_for(tmp_path: Path, genuine: list[Path], which: int, end: float) -> None:
    content = genuine[which].read_bytes()
    _is_accounted_for(tmp_path / "Doe.dcm", content[: int(end * len(content))])


@fuzz
@given(which=files, flipped=st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=8))
def test_flipped_bits_are_accounted_for(
    tmp_path: Path, genuine: list[Path], which: int, flipped: list[tuple[float, int]]
) -> None:
    content = bytearray(genuine[which].read_bytes())
    for place, bit in flipped:
        content[int(place * len(content))] ^= 1 << bit
    _is_accounted_for(tmp_path / "Doe.dcm", bytes(content))


@fuzz
@given(which=files, place=places, lost=st.integers(0, 64), garbage=st.binary(max_size=64))
def test_garbage_in_a_file_is_accounted_for(
    tmp_path: Path, genuine: list[Path], which: int, place: float, lost: int, garbage: bytes
) -> None:
    content = genuine[which].read_bytes()
    start = int(place * len(content))
    _is_accounted_for(tmp_path / "Doe.dcm", content[:start] + garbage + content[start + lost :])


@fuzz
@given(garbage=st.binary(max_size=2000))
def test_garbage_after_the_preamble_is_accounted_for(tmp_path: Path, garbage: bytes) -> None:
    _is_accounted_for(tmp_path / "Doe.dcm", b"\0" * 128 + b"DICM" + garbage)
