"""Do the manifests of an AI-READI folder say whose scan it is, of which eye, and which infrared scan belongs to it?"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.ingest.aireadi import AIREADI, find, read
from client.ingest.export import (
    QUARANTINED,
    SKIPPED,
    ExportError,
    LeftOut,
    LeftOutError,
    Scan,
    ScanImporter,
    ScanOptions,
)
from client.ingest.scans import ScanSummary, import_scans
from shared.schema import check_site
from shared.site_folder import SiteFolder
from tests.client.ingest.test_scans import new_site
from tests.factories import make_pixels

OCT_COLUMNS = [
    *("person_id", "manufacturer", "manufacturers_model_name", "anatomic_region", "imaging", "laterality", "height"),
    *("width", "number_of_frames", "pixel_spacing", "slice_thickness", "sop_instance_uid", "filepath"),
    *("reference_instance_uid", "reference_filepath"),
]
PHOTO_COLUMNS = [
    *("person_id", "manufacturer", "manufacturers_model_name", "laterality", "anatomic_region", "imaging", "height"),
    *("width", "color_channel_dimension", "sop_instance_uid", "filepath"),
]
_OCT = {"manufacturer": "Heidelberg", "manufacturers_model_name": "Spectralis", "imaging": "OCT", "laterality": "L"}
_IR = {**_OCT, "imaging": "Infrared Reflectance"}


def stand_in(file: Path, options: ScanOptions) -> Iterator[Scan | LeftOut]:
    """Reads files of "modality,uid,second" as a DICOM reader would, with an owner that the manifest knows better."""
    modality, uid, second = file.read_text().split(",")
    taken = datetime(2023, 8, 9) + timedelta(seconds=int(second))
    for frame in range(2 if modality == "OCT" else 1):
        pixels = make_pixels(hash(uid) % 1000 + frame)
        yield Scan("someone", f"{uid}/{frame + 1}", "R", taken, modality, pixels, "?", "9.9/1", is_central=not frame)
    if modality == "OCT":
        yield LeftOut(QUARANTINED, "has a damaged frame")


TOY = ScanImporter(find, partial(read, read_file=stand_in))


def write_manifest(folder: Path, name: str, columns: list[str], rows: list[dict[str, str]]) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(columns), *("\t".join(row.get(column, "Not reported") for column in columns) for row in rows)]
    (folder / name / "manifest.tsv").write_text("\n".join(lines) + "\n")


def write_file(folder: Path, path: str, content: str) -> None:
    file = folder / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """One patient: two OCT volumes that name their infrared scans, and a colour photograph."""
    folder = tmp_path / "export"
    octs, photos = [], []
    for number in range(2):
        uid, reference = f"1.3.{number}", f"1.4.{number}"
        oct_path = f"/retinal_oct/structural_oct/heidelberg_spectralis/1001/1001_oct_l_{uid}.dcm"
        ir_path = f"/retinal_photography/ir/heidelberg_spectralis/1001/1001_ir_l_{reference}.dcm"
        octs.append({**_OCT, "person_id": "1001", "sop_instance_uid": uid, "filepath": oct_path})
        octs[-1] |= {"reference_instance_uid": reference, "reference_filepath": ir_path}
        photos.append({**_IR, "person_id": "1001", "sop_instance_uid": reference, "filepath": ir_path})
        write_file(folder, oct_path, f"OCT,{uid},0")
        write_file(folder, ir_path, f"IR,{reference},0")
    colour = "/retinal_photography/cfp/icare_eidon/1001/1001_cfp_l_1.5.dcm"
    photos.append({"person_id": "1001", "imaging": "Color Photography", "sop_instance_uid": "1.5", "filepath": colour})
    write_file(folder, colour, "colour")
    write_manifest(folder, "retinal_oct", OCT_COLUMNS, octs)
    write_manifest(folder, "retinal_photography", PHOTO_COLUMNS, photos)
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return new_site(tmp_path / "site")


def run(site: Path, export: Path) -> ScanSummary:
    return import_scans(site, export, TOY, "aireadi", threads=2)


def replace(export: Path, folder: str, *changes: tuple[str, str]) -> None:
    file = export / folder / "manifest.tsv"
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def test_volumes_come_in_with_the_infrared_scans_that_the_manifest_names(site: Path, export: Path) -> None:
    """Both volumes were taken at one moment, so that only the names can tell."""
    summary = run(site, export)
    assert (summary.pairs, summary.unpaired) == (2, {})
    assert summary.scans.imported == 6
    assert {item.reason: item.count for item in summary.reasons} == {
        "has a damaged frame": 2,
        "is a manifest": 2,
        "is neither an OCT nor an infrared scan": 1,
    }
    index = SiteFolder(site).images()
    assert set(index["eye"]) == {"L"}
    assert set(index["device"]) == {"Heidelberg Spectralis"}
    assert index["subject_id"].nunique() == 1
    check_site(SiteFolder(site))
    assert run(site, export).sources.unchanged == 4


@pytest.mark.parametrize("unknown", ["Not reported", "Not Reported", "Unknown", "Not provided", "", "nan"])
def test_an_unknown_partner_is_none(site: Path, export: Path, unknown: str) -> None:
    for number in range(2):
        replace(export, "retinal_oct", (f"\t1.4.{number}\t", f"\t{unknown}\t"))
    assert run(site, export).pairs == 0  # two and two at one time: it is not known which


@pytest.mark.parametrize("eye", ["l", "L", "Left", "OS"])
def test_the_case_of_words_does_not_count(site: Path, export: Path, eye: str) -> None:
    replace(export, "retinal_oct", ("\tOCT\tL\t", f"\toct\t{eye}\t"))
    replace(export, "retinal_photography", ("Infrared Reflectance", "infrared reflectance"))
    assert run(site, export).pairs == 2


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("\tOCT\tL\t", "\tOCT\tUnknown\t", "has an eye that is neither right nor left"),
        ("1001\tHeidelberg", "Unknown\tHeidelberg", "has no patient or no SOP instance UID in the manifest"),
        ("\t1.3.0\t", "\tNot Reported\t", "has no patient or no SOP instance UID in the manifest"),
        ("\t1.3.0\t", "\t1.3.7\t", "has another SOP instance UID than its manifest says"),
        ("\t/retinal_oct/structural_oct", "\t/../structural_oct", "has a path that leads out of the export"),
        ("\t/retinal_oct/structural_oct", "\tNot reported", "is not there"),
        ("\tNot reported\tNot reported", "\t", "is a row that does not fit the columns of the manifest"),
    ],
)
def test_a_row_that_cannot_be_used_is_told_by_its_reason(
    site: Path, export: Path, old: str, new: str, reason: str
) -> None:
    if reason.startswith("is a row"):
        new = "\tx" * 9
    replace(export, "retinal_oct", (old, new))
    summary = run(site, export)
    assert reason in {item.reason for item in summary.reasons if item.outcome == QUARANTINED}
    check_site(SiteFolder(site))


def test_a_file_of_another_modality_than_the_manifest_says_is_not_taken(site: Path, export: Path) -> None:
    replace(export, "retinal_oct", ("\tOCT\tL", "\tInfrared\tL"))
    reasons = {item.reason for item in run(site, export).reasons}
    assert "is of another modality than its manifest says" in reasons


def test_the_names_of_the_first_release_are_known(site: Path, export: Path) -> None:
    reference = "reference_retinal_photography_image_instance_uid"
    replace(export, "retinal_oct", ("person_id", "participant_id"), ("reference_instance_uid", reference))
    assert run(site, export).pairs == 2


def test_a_part_of_the_data_set_is_enough(site: Path, export: Path) -> None:
    (export / "retinal_photography" / "manifest.tsv").unlink()
    summary = run(site, export)
    assert summary.unpaired == {"OCT": 2}
    assert {item.reason: item.count for item in summary.reasons}["is no aireadi file"] == 3


def test_a_folder_without_manifests_or_columns_is_refused(site: Path, export: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(ExportError, match="must hold a manifest"):
        run(site, tmp_path / "other")
    replace(export, "retinal_oct", ("laterality", "eye"))
    with pytest.raises(ExportError, match="laterality must name a column of retinal_oct"):
        run(site, export)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_export_is_accounted_for(site: Path, export: Path, seed: int) -> None:
    """Through the reader of DICOM that is really used: no file here is one."""
    dice = random.Random(seed)
    for file in sorted(export.rglob("*.dcm")):
        file.write_bytes(dice.randbytes(dice.choice([0, 100, 5000])))
    loop = export / "retinal_oct" / "loop"
    loop.symlink_to(export)
    manifest = export / "retinal_photography" / "manifest.tsv"
    content = bytearray(manifest.read_bytes())
    start = content.index(b"\n") + 1
    for _ in range(3):
        content[dice.randrange(start, len(content))] = dice.randrange(256)
    manifest.write_bytes(content)
    summary = import_scans(site, export, AIREADI, "aireadi", threads=2)
    assert summary.scans.imported == 0
    assert summary.sources.skipped + summary.sources.quarantined >= 5 + 2 + 1
    check_site(SiteFolder(site))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_as_a_manifest_are_refused_or_read(tmp_path: Path, data: bytes) -> None:
    write_manifest(tmp_path, "retinal_oct", OCT_COLUMNS, [])
    with (tmp_path / "retinal_oct" / "manifest.tsv").open("ab") as stream:
        stream.write(data)
    for source in find(tmp_path):
        with pytest.raises((LeftOutError, OSError, ValueError)) as caught:
            list(read(source, ScanOptions()))
        if isinstance(caught.value, LeftOutError):
            assert caught.value.left_out.outcome in (SKIPPED, QUARANTINED)
