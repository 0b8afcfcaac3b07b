"""Can a hospital's data engineer get from exports to a checked folder by commands, and is what is wrong said?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.cli import site
from client.ingest.export import ExportError
from client.presets import TASKS, find_preset
from shared.errors import ConfigError, SiteError
from shared.site_folder import SiteFolder
from tests.factories import encode_image, make_pixels, small_site

SCANS = "{path: file, patient: who, eye: side, acquired_at: taken, every_modality: OCT}"


def type_(*arguments: str | Path) -> Result:
    """What ``fedretina site`` does; its errors are raised."""
    return CliRunner().invoke(site, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def north(tmp_path: Path) -> Path:
    assert type_("init", tmp_path / "north", "--name", "North", "--time-zone", "Europe/Vienna").exit_code == 0
    return tmp_path / "north"


@pytest.fixture
def records(tmp_path: Path) -> tuple[Path, Path]:
    """A CSV file of two wards, and its mapping."""
    table, mapping = tmp_path / "visits.csv", tmp_path / "visits.yaml"
    rows = [f"{number},{'A' if number % 2 else 'B'},2020-01-0{number},{120 + number}" for number in range(1, 9)]
    table.write_text("\n".join(["who,ward,day,pressure", *rows]) + "\n")
    mapping.write_text(
        "patient: [who]\n"
        'time: {columns: [day], format: "%Y-%m-%d"}\n'
        'columns: {pressure: {code: "LOINC//8480-6", unit: mmHg}}\n'
    )
    return table, mapping


def test_from_nothing_to_a_checked_folder(north: Path, records: tuple[Path, Path]) -> None:
    assert SiteFolder(north).dataset().time_zone == "Europe/Vienna"
    command = ("import", "csv", records[0], "--mapping", records[1], "--site", north)
    assert "8 events" in type_(*command).output
    before = (north / "events.parquet").read_bytes()
    type_(*command)
    assert (north / "events.parquet").read_bytes() == before
    found = type_("check", north)
    assert found.exit_code == 1
    assert "North: 8 patients" in found.output
    assert json.loads((north / "check.json").read_text())["verdict"] == "warn"


def test_rows_are_taken_by_what_a_column_says(north: Path, records: tuple[Path, Path]) -> None:
    type_("import", "csv", records[0], "--mapping", records[1], "--site", north, "--where", "ward=A")
    assert len(SiteFolder(north).events()) == 4


@pytest.mark.parametrize("kind", ["dicom", "heidelberg"])
def test_scans_that_are_none_are_accounted_for(north: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "notes.txt").write_text("nothing")
    said = type_("import", kind, tmp_path / "export", "--site", north).output
    assert "files: 0 imported, 0 unchanged, 1 skipped, 0 quarantined" in said


def test_wrong_words_are_told(north: Path, records: tuple[Path, Path], tmp_path: Path) -> None:
    table, mapping = records
    with pytest.raises(ExportError, match=r"KIND must be one of dicom, .*, fhir, got 'dicm'"):
        type_("import", "dicm", table, "--site", north)
    with pytest.raises(ExportError, match=r"absent.* must exist"):
        type_("import", "csv", tmp_path / "absent", "--site", north)
    with pytest.raises(ExportError, match="--mapping must be given"):
        type_("import", "csv", table, "--site", north)
    with pytest.raises(ExportError, match="--mapping must be left out"):
        type_("import", "fhir", table, "--mapping", mapping, "--site", north)
    with pytest.raises(ExportError, match="--where must be COLUMN=VALUE, got 'ward'"):
        type_("import", "csv", table, "--mapping", mapping, "--site", north, "--where", "ward")
    with pytest.raises(ConfigError, match="--b_scans must be >= 1"):
        type_("import", "dicom", table, "--site", north, "--b-scans", "0")
    with pytest.raises(SiteError, match=r"dataset.yaml must exist|must be a site folder"):
        type_("import", "csv", table, "--mapping", mapping, "--site", tmp_path / "nowhere")
    assert len(SiteFolder(north).events()) == 0


def test_check_says_by_its_exit_code_what_it_found(tmp_path: Path) -> None:
    tables = small_site()
    tables.images["eye"] = "X"
    found = type_("check", tables.write(tmp_path / "broken").path)
    assert found.exit_code == 2
    assert "eye must be one of R, L" in found.output


def test_labels_are_made_by_a_task_file(tmp_path: Path) -> None:
    folder = small_site().write(tmp_path / "north").path
    (tmp_path / "task.yaml").write_text("name: detection\nwindow: before\nobserved_days: 0\n")
    said = type_("label", "--task", tmp_path / "task.yaml", "--site", folder).output
    assert "negative: 12 visits of 12 patients" in said
    assert not SiteFolder(folder).labels("detection")["boolean_value"].any()


def test_the_doctor_has_a_fix_for_whatever_is_wrong(north: Path) -> None:
    (north / "state").chmod(0o755)
    found = type_("doctor", north, "--json")
    problems = [finding for finding in json.loads(found.output) if finding["state"] != "ok"]
    assert any("state" in finding["problem"] for finding in problems)
    assert all(finding["fix"] for finding in problems)


def test_images_come_in_by_a_table(north: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "a.png").write_bytes(encode_image(make_pixels(1)))
    (export / "list.csv").write_text("file,who,side,taken\na.png,7,right,2020-05-01\n")
    (tmp_path / "scans.yaml").write_text(SCANS)
    said = type_("import", "images", export, "--mapping", tmp_path / "scans.yaml", "--site", north).output
    assert "scans: 1 imported" in said


def test_a_file_is_meant_by_its_path_or_by_the_name_of_one_that_comes_along(tmp_path: Path) -> None:
    own = tmp_path / "stroke_risk"
    own.write_text("")
    assert find_preset(str(own), TASKS) == own
    assert find_preset("stroke_risk", TASKS).name == "stroke_risk.yaml"
    with pytest.raises(ConfigError, match=r"file must be a file, or one of those .* stroke_detection, .*stroke_risk"):
        find_preset("stroke", TASKS)
