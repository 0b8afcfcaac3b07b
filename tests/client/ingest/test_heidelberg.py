"""Does every scan of a Heidelberg export come out as the device took it, and nothing else in its place?"""

from __future__ import annotations

import os
import struct
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from client.ingest.export import QUARANTINED, SKIPPED, ExportError, LeftOut, LeftOutError, Scan, ScanOptions, Source
from client.ingest.heidelberg import HEIDELBERG
from client.ingest.heidelberg.values import e2e_greys
from tests.client.ingest.heidelberg_files import (
    DATA,
    EXAM,
    NOTHING,
    Series,
    Vol,
    days,
    e2e_content,
    make_reflectance,
    make_values,
    write_e2e,
    write_vol,
    write_xml,
)
from tests.factories import encode_image, make_pixels

EVERY = ScanOptions(b_scans=512)
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs the Heidelberg sample in ../shared/data/heyex")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the examples of one test share."""
    return tmp_path_factory.mktemp("heidelberg")


@pytest.fixture(scope="module")
def eyepy_he() -> Any:
    """eyepy's readers, the reference; it warns while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from eyepy.io import he
        from eyepy.io.he import e2e_reader, vol_reader, xml_reader  # noqa: F401
    return he


def read(*paths: Path, options: ScanOptions = EVERY) -> tuple[list[Scan], list[LeftOut]]:
    """What a source of these files gives."""
    scans: list[Scan] = []
    left_out: list[LeftOut] = []
    try:
        for one in HEIDELBERG.read(Source("name", paths), options):
            if isinstance(one, Scan):
                scans.append(one)
            else:
                left_out.append(one)
    except LeftOutError as error:
        left_out.append(error.left_out)
    return scans, left_out


def read_export(export: Path, options: ScanOptions = EVERY) -> tuple[list[Scan], list[LeftOut]]:
    parts = [read(*source.files, options=options) for source in HEIDELBERG.find(export, None)]
    return [scan for scans, _ in parts for scan in scans], [one for _, left_out in parts for one in left_out]


def of(scans: list[Scan], modality: str) -> list[Scan]:
    return [scan for scan in scans if scan.modality == modality]


def pixels(scan: Scan) -> NDArray[Any]:
    assert isinstance(scan.image, np.ndarray)
    return scan.image


def shown(reflectance: NDArray[np.float32]) -> NDArray[np.float64]:
    """The published conversion, written once more: (value ** 0.25) * 255, nothing is black."""
    values = np.where(reflectance == NOTHING, 0, reflectance).astype(np.float64)
    return np.round(np.minimum(values, 1) ** 0.25 * 255)


def same(one: Scan, other: Scan) -> bool:
    return replace(one, image=b"") == replace(other, image=b"") and np.array_equal(pixels(one), pixels(other))


# .vol


@pytest.mark.parametrize("pattern", range(6))
def test_vol_of_every_pattern_gives_every_b_scan_and_the_localizer(tmp_path: Path, pattern: int) -> None:
    truth = Vol(pattern=pattern)
    scans, left_out = read(write_vol(tmp_path / "a.vol", pattern=pattern))
    (infrared,) = of(scans, "IR")
    b_scans = of(scans, "OCT")
    assert not left_out
    np.testing.assert_array_equal(pixels(infrared), truth.slo)
    np.testing.assert_allclose(np.stack([pixels(scan) for scan in b_scans]), shown(truth.reflectance), atol=1)
    assert {scan.partner for scan in b_scans} == {infrared.key}
    assert [scan.is_central for scan in b_scans] == [False, True, False]
    assert (infrared.spacing_mm, b_scans[0].spacing_mm) == ((0.0116, 0.0115), (0.00387, 0.0114))
    assert {(scan.patient, scan.eye, scan.acquired_at, scan.device) for scan in scans} == {
        ("P-17", "R", EXAM, "Heidelberg Spectralis")
    }
    assert {scan.quality for scan in b_scans} == {31.5}


@pytest.mark.parametrize("pattern", [2, 5])
def test_eyepy_still_loses_the_patterns_for_which_we_read_ourselves(
    tmp_path: Path, eyepy_he: Any, pattern: int
) -> None:
    reader = eyepy_he.HeVolReader(write_vol(tmp_path / "a.vol", pattern=pattern))
    with pytest.raises(ValueError, match=f"scan pattern {pattern}"):
        _ = reader.volume


def check_against_eyepy(path: Path, he: Any) -> None:
    parsed = he.HeVolReader(path).parsed_file
    scans, left_out = read(path)
    b_scans = of(scans, "OCT")
    assert not left_out
    assert len(b_scans) == parsed.n_bscans
    np.testing.assert_array_equal(pixels(of(scans, "IR")[0]), parsed.localizer)
    raw = np.stack([b_scan.data for b_scan in parsed.bscans])
    np.testing.assert_allclose(np.stack([pixels(scan) for scan in b_scans]), shown(raw), atol=1)
    assert [scan.quality for scan in b_scans] == [b_scan.quality for b_scan in parsed.bscans]
    assert {scan.acquired_at.isoformat() for scan in scans} == {parsed.exam_time}
    assert {(scan.patient, scan.eye) for scan in scans} == {
        (parsed.patient_id, "R" if parsed.scan_position == "OD" else "L")
    }
    assert {scan.spacing_mm for scan in b_scans} == {(parsed.scale_y, parsed.scale_x)}


def test_vol_is_read_as_eyepy_reads_it(tmp_path: Path, eyepy_he: Any) -> None:
    check_against_eyepy(write_vol(tmp_path / "a.vol", eye=b"OS", reflectance=make_reflectance(4, count=5)), eyepy_he)


@needs_data
def test_sample_vol_is_read_as_eyepy_reads_it(eyepy_he: Any) -> None:
    check_against_eyepy(DATA / "heyex_vol" / "test_volume.vol", eyepy_he)


def test_vol_what_is_no_reflectance_is_black(tmp_path: Path) -> None:
    values = np.array([[[NOTHING, np.nan, np.inf, -np.inf, -1.0, 0.0, 1.0, 1.5, 1 / 16]]], dtype=np.float32)
    scans, _ = read(write_vol(tmp_path / "a.vol", reflectance=values))
    assert pixels(of(scans, "OCT")[0]).tolist() == [[0, 0, 0, 0, 0, 0, 255, 255, 128]]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"patient": b""}, "patient"),
        ({"patient": b"   \0x"}, "patient"),
        ({"eye": b""}, "eye"),
        ({"eye": b"OU"}, "eye"),
        ({"exam_time": 0, "visit_date": 0.0}, "time"),
        ({"exam_time": 2**64 - 1, "visit_date": float("nan")}, "time"),
        ({"pattern": 6}, "scan pattern 6"),
        ({"pattern": -1}, "scan pattern -1"),
    ],
)
def test_vol_without_patient_eye_time_or_known_pattern_is_quarantined(
    tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    scans, (left_out,) = read(write_vol(tmp_path / "a.vol", **changes))
    assert not scans
    assert left_out.outcome == QUARANTINED
    assert word in str(left_out)
    assert "6" not in left_out.reason  # what the file states is for the site's own eyes


def test_vol_day_of_the_visit_stands_for_a_missing_time(tmp_path: Path) -> None:
    scans, _ = read(write_vol(tmp_path / "a.vol", exam_time=0, visit_date=days(datetime(2021, 3, 5))))
    assert {scan.acquired_at for scan in scans} == {datetime(2021, 3, 5)}


def test_vol_quality_that_the_device_does_not_state_is_none(tmp_path: Path) -> None:
    scans, _ = read(write_vol(tmp_path / "a.vol", quality=float(NOTHING)))
    assert {scan.quality for scan in scans} == {None}


def test_vol_keys_are_the_file_s_own(tmp_path: Path) -> None:
    first, _ = read(write_vol(tmp_path / "a.vol"))
    again, _ = read(write_vol(tmp_path / "renamed.bin"))
    others: list[dict[str, Any]] = [
        {"series": b"9"},
        {"eye": b"OS"},
        {"patient": b"P-18"},
        {"exam_time": Vol().exam_time + 1},
    ]
    keys = [{scan.key for scan in read(write_vol(tmp_path / "b.vol", **change))[0]} for change in others]
    assert all(same(*pair) for pair in zip(first, again, strict=True))
    assert len({scan.key for scan in first}.union(*keys)) == len(first) * (1 + len(others))


def test_vol_that_claims_more_than_it_holds_is_told_apart_without_reading(tmp_path: Path) -> None:
    content = bytearray(Vol(slo=make_pixels(1, 0, 0)).content())
    struct.pack_into("<III", content, 12, 4096, 4000, 8192)  # 134 MB a B-scan
    path = tmp_path / "a.vol"
    path.write_bytes(content)
    tracemalloc.start()
    scans, left_out = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not scans
    assert len(left_out) == EVERY.b_scans
    assert peak < 2**20
    struct.pack_into("<I", content, 16, 2**32 - 1)
    path.write_bytes(content)
    assert "impossible sizes" in read(path)[1][0].reason


# .E2E


def test_e2e_gives_every_series_as_eyepy_reads_it(tmp_path: Path, eyepy_he: Any) -> None:
    series = [Series(number=51, eye="L", values=make_values(3, 5)), Series(number=50), Series(number=60, pattern=3)]
    path = write_e2e(tmp_path / "a.E2E", series)
    scans, left_out = read(path)
    with eyepy_he.HeE2eReader(path) as reader:
        theirs = [(one.laterality(), one.get_bscans(), one.get_localizer().data) for one in reader.series]
    assert not left_out
    assert len(theirs) == 3
    for (eye, volume, localizer), infrared in zip(theirs, of(scans, "IR"), strict=True):
        b_scans = [scan for scan in of(scans, "OCT") if scan.partner == infrared.key]
        assert {scan.eye for scan in [infrared, *b_scans]} == {chr(int(eye))}
        np.testing.assert_array_equal(pixels(infrared), localizer)
        raw = np.where(volume > 1.99, 0, volume)
        np.testing.assert_allclose(np.stack([pixels(scan) for scan in b_scans]), shown(raw), atol=1)
        assert sum(scan.is_central for scan in b_scans) == 1
    assert {scan.acquired_at.replace(microsecond=0) for scan in scans} == {EXAM}
    assert {scan.quality for scan in of(scans, "OCT")} == {28.5}


def test_times_in_utc_are_told_by_the_clock_of_the_site(tmp_path: Path) -> None:
    path = write_e2e(tmp_path / "a.E2E", [Series()])
    here, _ = read(path)
    there, _ = read(path, options=ScanOptions(b_scans=EVERY.b_scans, time_zone="America/New_York"))
    offset = EXAM.replace(tzinfo=ZoneInfo("America/New_York")).utcoffset()
    assert {after.acquired_at - before.acquired_at for before, after in zip(here, there, strict=True)} == {offset}
    assert [scan.key for scan in here] == [scan.key for scan in there]


@pytest.mark.parametrize("changes", [{"pattern": 2, "values": make_values(5, 1)}, {"pattern": 5}, {"layers": False}])
def test_e2e_gives_series_of_which_eyepy_makes_no_volume(
    tmp_path: Path, eyepy_he: Any, changes: dict[str, Any]
) -> None:
    path = write_e2e(tmp_path / "a.E2E", [Series(**changes)])
    with eyepy_he.HeE2eReader(path) as reader:
        assert not reader.volumes
    scans, left_out = read(path)
    assert not left_out
    assert len(of(scans, "OCT")) == len(Series(**changes).values)


def test_e2e_values_are_floats_of_6_bits_exponent_and_10_bits_mantissa() -> None:
    values = np.arange(0xFFFF)
    expected = np.minimum(np.ldexp(1024.0 + values % 1024, values // 1024 - 73), 1) ** 0.25 * 255
    expected[values >= 65526] = 0  # 1.99 and more: nothing
    np.testing.assert_allclose(e2e_greys()[:-1], expected, atol=0.51)
    assert np.all(np.diff(e2e_greys()[:65526].astype(int)) >= 0)
    assert e2e_greys()[0xFFFF] == 0


@given(entries=st.integers(1, 40), is_multiple=st.booleans())
@settings(max_examples=8, deadline=None)
def test_e2e_does_not_depend_on_how_its_directory_is_cut(folder: Path, entries: int, is_multiple: bool) -> None:
    path = write_e2e(folder / "a.E2E", [Series()])
    whole, _ = read(path)
    prefix = b"E2EMultipleVolumeFile".ljust(64, b"\0") if is_multiple else b""
    path.write_bytes(prefix + e2e_content([Series()], entries_a_chunk=entries))
    scans, left_out = read(path)
    assert not left_out
    assert all(same(*pair) for pair in zip(whole, scans, strict=True))


@pytest.mark.parametrize(
    ("changes", "outcome", "word"),
    [
        ({"series_type": 752}, QUARANTINED, "angiography"),
        ({"series_type": 802}, SKIPPED, "anterior"),
        ({"eye": "X"}, QUARANTINED, "eye"),
        ({"time": datetime(1980, 1, 1)}, QUARANTINED, "time"),
    ],
)
def test_e2e_series_that_cannot_be_used_does_not_hinder_the_next(
    tmp_path: Path, changes: dict[str, Any], outcome: str, word: str
) -> None:
    alone, _ = read(write_e2e(tmp_path / "a.E2E", [Series(number=52)]))
    scans, left_out = read(write_e2e(tmp_path / "b.E2E", [Series(number=51, **changes), Series(number=52)]))
    assert all(same(*pair) for pair in zip(alone, scans, strict=True))
    assert {one.outcome for one in left_out} == {outcome}
    assert all(word in one.reason for one in left_out)


def test_e2e_localizer_of_another_light_is_no_infrared_scan(tmp_path: Path) -> None:
    scans, (left_out,) = read(write_e2e(tmp_path / "a.E2E", [Series(en_face=("Fluorescein", "FA"))]))
    assert left_out.outcome == SKIPPED
    assert {(scan.modality, scan.partner) for scan in scans} == {("OCT", None)}


def test_sdb_gets_the_patient_from_the_pdb_beside_it(tmp_path: Path) -> None:
    write_e2e(tmp_path / "00000050.sdb", [Series()], with_patient=False)
    alone, left_out = read_export(tmp_path)
    assert not alone
    assert {one.reason for one in left_out} == {"has no patient id"}
    write_e2e(tmp_path / "00000007.pdb", [])
    scans, left_out = read_export(tmp_path)
    assert {scan.patient for scan in scans} == {"P-17"}
    assert [(one.outcome, one.reason) for one in left_out] == [(SKIPPED, "has no series")]


def test_e2e_directory_that_leads_back_ends(tmp_path: Path) -> None:
    content = bytearray(e2e_content([Series()], entries_a_chunk=100))
    struct.pack_into("<I", content, 88 + 44, 88)  # its previous chunk is itself
    count = struct.unpack_from("<I", content, 88 + 36)[0]
    struct.pack_into("<II", content, 140 + 44 * (count - 1) + 4, 88 - 60, 0)  # eyepy walks this in circles
    path = tmp_path / "a.E2E"
    path.write_bytes(content)
    scans, left_out = read(path)
    assert len(scans) == 3  # of four; the last record is lost
    assert all(one.outcome == QUARANTINED for one in left_out)


# XML


@needs_data
def test_sample_xml_is_read_as_eyepy_reads_it_pixel_for_pixel(eyepy_he: Any) -> None:
    export = DATA / "heyex_xml" / "test_volume"
    volume = eyepy_he.HeXmlReader(export).volume
    scans, left_out = read_export(export)
    b_scans = of(scans, "OCT")
    np.testing.assert_array_equal(np.stack([pixels(scan) for scan in b_scans]), volume.data)
    np.testing.assert_array_equal(pixels(of(scans, "IR")[0]), volume.localizer.data)
    assert {scan.patient for scan in scans} == {volume.meta["patient"]["patient_id"]}
    assert [scan.quality for scan in b_scans] == [meta["quality"] for meta in volume.meta["bscan_meta"]]
    assert of(scans, "IR")[0].acquired_at == datetime(2000, 1, 1, 11, 15, 40, 46000)
    assert [one.reason for one in left_out] == ["is an image that no XML of the export names"]  # it has one too many


@pytest.mark.parametrize("suffix", ["tif", "png", "bmp"])
@pytest.mark.parametrize("encoding", ["UTF-8", "ISO-8859-1", "UTF-16"])
def test_xml_in_every_encoding_and_image_format(tmp_path: Path, suffix: str, encoding: str) -> None:
    write_xml(tmp_path, suffix=suffix, encoding=encoding, patient="Müller-3")
    (source,) = HEIDELBERG.find(tmp_path, None)
    scans, left_out = read(*source.files)
    assert not left_out
    assert [scan.modality for scan in scans] == ["IR", "OCT", "OCT", "OCT"]
    for number, scan in enumerate(scans):
        np.testing.assert_array_equal(pixels(scan), make_pixels(number, 12, 10))
        assert scan.acquired_at == EXAM.replace(second=15 + number)  # by the local clock, on the study's own day
        assert (scan.patient, scan.eye, scan.spacing_mm, scan.quality) == ("Müller-3", "R", (0.00387, 0.0114), 27.0)
    assert [scan.is_central for scan in scans[1:]] == [False, True, False]
    assert {scan.partner for scan in scans[1:]} == {scans[0].key}


def test_xml_with_jpeg_images(tmp_path: Path) -> None:
    write_xml(tmp_path, suffix="jpg", light="")
    scans, left_out = read_export(tmp_path)
    assert not left_out
    for scan, name in zip(scans, ("IR0", "B1", "B2", "B3"), strict=True):
        with Image.open(tmp_path / f"{name}.jpg") as picture:
            np.testing.assert_array_equal(pixels(scan), np.asarray(picture))


@pytest.mark.parametrize("light", ["FA", "ICGA"])
def test_xml_localizer_of_another_light_is_no_infrared_scan(tmp_path: Path, light: str) -> None:
    write_xml(tmp_path, light=f"<LightSource>{light}</LightSource>")
    scans, (left_out,) = read_export(tmp_path)
    assert left_out.outcome == SKIPPED
    assert {(scan.modality, scan.partner) for scan in scans} == {("OCT", None)}


def test_xml_keys_are_the_export_s_own(tmp_path: Path) -> None:
    write_xml(tmp_path / "a")
    write_xml(tmp_path / "b" / "c", suffix="png").rename(tmp_path / "b" / "c" / "other.xml")
    first, second = (read_export(tmp_path / name)[0] for name in "ab")
    assert [scan.key for scan in first] == [scan.key for scan in second]
    assert len({scan.key for scan in first}) == len(first)


ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))


@pytest.mark.parametrize(
    "document_type",
    [
        f'<!DOCTYPE HEDX [<!ENTITY e0 "ha">{ENTITIES}]>',
        '<!DOCTYPE HEDX [<!ENTITY e11 SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE HEDX SYSTEM "http://127.0.0.1:9/x.dtd">',
    ],
)
def test_xml_with_a_document_type_is_refused_before_anything_expands(tmp_path: Path, document_type: str) -> None:
    xml = write_xml(tmp_path, patient="&e11;" if "e11" in document_type else "P-17")
    xml.write_text(xml.read_text().replace("?>\n", f"?>\n{document_type}\n", 1))
    scans, (left_out,) = read(xml, *tmp_path.glob("*.tif"))
    assert not scans
    assert left_out.outcome == QUARANTINED
    assert "document type" in left_out.reason


def test_xml_image_that_is_missing_damaged_or_another_is_quarantined_alone(tmp_path: Path) -> None:
    write_xml(tmp_path, b_scans=5)
    (tmp_path / "B1.tif").unlink()
    (tmp_path / "B2.tif").write_bytes((tmp_path / "B3.tif").read_bytes()[:40])
    (tmp_path / "B4.tif").write_bytes(encode_image(make_pixels(9, 12, 11), "TIFF"))
    scans, left_out = read_export(tmp_path)
    assert [scan.key.split("/")[5] for scan in scans] == ["0", "3", "5"]
    assert [one.outcome for one in left_out] == [QUARANTINED] * 3
    assert len({one.reason for one in left_out}) == 3


@pytest.mark.parametrize(
    ("changes", "outcome", "word"),
    [
        ({"patient": " "}, QUARANTINED, "patient"),
        ({"eye": ""}, QUARANTINED, "eye"),
        ({"kind": "OCTA Volume"}, QUARANTINED, "angiography"),
        ({"structure": "Anterior Segment"}, SKIPPED, "anterior"),
    ],
)
def test_xml_that_cannot_be_used_says_why(tmp_path: Path, changes: dict[str, Any], outcome: str, word: str) -> None:
    write_xml(tmp_path, **changes)
    scans, left_out = read_export(tmp_path)
    assert not scans
    assert {one.outcome for one in left_out} == {outcome}
    assert all(word in one.reason for one in left_out)


def test_xml_names_files_beside_it_only(tmp_path: Path) -> None:
    (tmp_path / "secret.tif").write_bytes(encode_image(make_pixels(7, 12, 10), "TIFF"))
    xml = write_xml(tmp_path / "export")
    for address in ("../secret.tif", "..\\secret.tif", str(tmp_path / "secret.tif"), "%2e%2e/secret.tif", "..", ""):
        text = xml.read_text()
        xml.write_text(text.replace("file:///\\\\host\\share\\B2.tif", address))
        (source,) = (source for source in HEIDELBERG.find(tmp_path, None) if source.name.endswith("xml"))
        scans, left_out = read(*source.files)
        assert len(scans) == 3
        assert [one.reason for one in left_out] == ["names an image that is not there"]
        xml.write_text(text)


# Sources


def test_every_file_of_an_export_is_in_a_source(tmp_path: Path) -> None:
    write_vol(tmp_path / "scan.txt")
    write_e2e(tmp_path / "patient.vol", [Series()])
    xml = write_xml(tmp_path / "x" / "y")
    xml.write_text(xml.read_text().replace("B1.tif", "b1.TIF").replace("B2.tif", "sneaky.vol"))
    write_vol(xml.parent / "sneaky.vol", series=b"1")
    xml.rename(xml.with_suffix(".dat"))
    contents = {
        "empty.vol": b"",
        "empty.txt": b"",
        "text.E2E": b"hello",
        "page.xml": b"<html/>",
        "broken.xml": b"<HEDX>",
    }
    contents |= {"loose.png": b"\x89PNG", "report.pdf": b"%PDF", os.fsdecode(b"n\xff.vol"): b"?"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link.vol").symlink_to(tmp_path / "scan.txt")
    (tmp_path / "away").symlink_to("/")
    os.mkfifo(tmp_path / "pipe")
    sources = list(HEIDELBERG.find(tmp_path, None))
    regular = {path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()}
    assert {file for source in sources for file in source.files} == regular  # no link, no pipe, nothing of /
    names = [source.name for source in sources]
    assert len(names) == len(set(names))
    outcomes = {source.name: {one.outcome for one in read(*source.files)[1]} for source in sources}
    scans = {source.name: len(read(*source.files)[0]) for source in sources}
    assert {name for name, count in scans.items() if count} == {
        "scan.txt", "patient.vol", "x/y/export.dat", "x/y/sneaky.vol"
    }  # fmt: skip
    quarantined = {name for name, found in outcomes.items() if QUARANTINED in found}
    assert quarantined == {"empty.vol", "text.E2E", "broken.xml", "n\udcff.vol", "x/y/export.dat"}
    assert all(scans[name] or outcomes[name] for name in names)


def test_one_file_is_an_export_too(tmp_path: Path) -> None:
    xml = write_xml(tmp_path)
    assert [source.files for source in HEIDELBERG.find(xml, None)] == [
        (xml, *(tmp_path / f"{name}.tif" for name in ("IR0", "B1", "B2", "B3")))
    ]
    (source,) = HEIDELBERG.find(write_vol(tmp_path / "a.vol"), None)
    assert source == Source("a.vol", (tmp_path / "a.vol",))


def test_no_export_or_a_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="must be a folder or a file"):
        list(HEIDELBERG.find(tmp_path / "none", None))
    with pytest.raises(ExportError, match="mapping is not used"):
        list(HEIDELBERG.find(tmp_path, tmp_path / "mapping.yaml"))


# Every format

WRITERS: dict[str, Callable[[Path], tuple[Path, ...]]] = {
    "vol": lambda folder: (write_vol(folder / "whole.vol", reflectance=make_reflectance(6, count=6)),),
    "e2e": lambda folder: (
        write_e2e(folder / "whole.E2E", [Series(values=make_values(6, 6)), Series(number=9, eye="L")]),
    ),
    "xml": lambda folder: next(HEIDELBERG.find(write_xml(folder / "xml", b_scans=6), None)).files,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("wanted", range(1, 8))
def test_fewer_b_scans_are_some_of_the_same(folder: Path, kind: str, wanted: int) -> None:
    files = WRITERS[kind](folder)
    every = {scan.key: scan for scan in read(*files)[0]}
    scans, left_out = read(*files, options=ScanOptions(b_scans=wanted))
    assert not left_out
    assert all(same(scan, replace(every[scan.key], is_central=scan.is_central)) for scan in scans)
    for partner in {scan.partner for scan in of(scans, "OCT")}:
        volume = [scan for scan in of(scans, "OCT") if scan.partner == partner]
        of_all = [scan for scan in every.values() if scan.partner == partner]
        assert len(volume) == min(wanted, len(of_all))
        assert sum(scan.is_central for scan in volume) == 1


@pytest.mark.parametrize("kind", WRITERS)
def test_no_name_and_no_birth_date_comes_along(folder: Path, kind: str) -> None:
    scans, _ = read(*WRITERS[kind](folder))
    for scan in scans:
        told = repr(replace(scan, image=b""))
        assert not any(word in told for word in ("Doe", "Jane", "1950", "whole", str(folder)))


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, tuple[tuple[Path, ...], bytes, dict[str, Scan]]]:
    """Of each kind: its files, the first one's bytes, and its scans by key."""
    written = {kind: write(folder) for kind, write in WRITERS.items()}
    return {
        kind: (files, files[0].read_bytes(), {scan.key: scan for scan in read(*files)[0]})
        for kind, files in written.items()
    }


@pytest.mark.parametrize("kind", WRITERS)
@given(cut=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_of_a_file_cut_short_what_is_whole_comes_out_unchanged(whole: Any, folder: Path, kind: str, cut: float) -> None:
    files, content, scans_of_whole = whole[kind]
    path = folder / f"cut.{kind}"
    path.write_bytes(content[: int(cut * len(content))])
    scans, left_out = read(path, *files[1:])
    assert left_out or len(scans) == len(scans_of_whole)  # as when only the last line break is lost
    for scan in scans:
        of_whole = scans_of_whole[scan.key]
        assert same(replace(scan, partner=None), replace(of_whole, partner=None))
        assert scan.partner in (of_whole.partner, None)


def damages() -> st.SearchStrategy[list[tuple[float, bytes]]]:
    """Places within a file, and what is written over it there."""
    words = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"<!", b"&#0;", b"<Image>"]
    content = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(words))
    return st.lists(st.tuples(st.floats(0, 1, exclude_max=True), content), min_size=1, max_size=6)


@pytest.mark.parametrize("kind", WRITERS)
@given(damage=damages(), near_the_front=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_ends_in_sound_scans_and_reasons(
    whole: Any, folder: Path, kind: str, damage: list[tuple[float, bytes]], near_the_front: bool
) -> None:
    files, content, _ = whole[kind]
    damaged = bytearray(content)
    for place, word in damage:
        at = int(place * min(len(content), 1200 if near_the_front else len(content)))
        damaged[at : at + len(word)] = word
    path = folder / f"damaged.{kind}"
    path.write_bytes(damaged)
    check_sound(*read(path, *files[1:]))


@given(head=st.sampled_from([b"HSF-OCT-103\0", b"ep-v0.6\0", b"CMDb", b"E2EMultipleVolumeFile", b"<HEDX>", b"<", b""]),
       rest=st.binary(max_size=4096))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_garbage_ends_in_a_reason(folder: Path, head: bytes, rest: bytes) -> None:
    path = folder / "garbage"
    path.write_bytes(head + rest)
    (source,) = (source for source in HEIDELBERG.find(path, None))
    scans, left_out = read(*source.files)
    check_sound(scans, left_out)
    assert scans or left_out


def check_sound(scans: list[Scan], left_out: list[LeftOut]) -> None:
    for scan in scans:
        assert pixels(scan).ndim == 2
        assert pixels(scan).dtype in (np.uint8, np.uint16)
        assert scan.patient
        assert scan.eye in ("R", "L")
        assert 1990 <= scan.acquired_at.year <= 2100
        assert scan.spacing_mm is None or min(scan.spacing_mm) > 0
        assert scan.quality is None or np.isfinite(scan.quality)
    for one in left_out:
        assert one.outcome in (SKIPPED, QUARANTINED)
        assert "P-17" not in one.reason
