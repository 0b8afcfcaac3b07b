"""Can a hospital's data engineer get from exports to a checked folder by commands, and is what is wrong said?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from client.cli import site
from client.ingest.export import ExportError
from client.ingest.options import RECORDS as RECORD_KINDS
from client.ingest.options import SCANS as SCAN_KINDS
from client.ingest.options import SERVES, check_options
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
def test_scans_that_are_none_are_accounted_for_and_then_an_error(north: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "notes.txt").write_text("nothing")
    for _ in range(2):  # the journal of the first does not make it any better
        found = CliRunner().invoke(site, ["import", kind, str(tmp_path / "export"), "--site", str(north)])
        assert "files: 0 imported, 0 unchanged, 1 skipped, 0 quarantined" in found.output
        assert isinstance(found.exception, ExportError)
        assert f"must hold {SCAN_KINDS[kind]}. Nothing there" in str(found.exception)


@pytest.mark.parametrize("kind", ["dicom", "heidelberg"])
def test_an_empty_export_of_scans_is_an_error(north: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "export").mkdir()
    with pytest.raises(ExportError, match=r"export must hold .* choose another KIND or PATH"):
        type_("import", kind, tmp_path / "export", "--site", north)


def test_scans_that_are_all_quarantined_are_an_error_that_points_to_the_reasons(north: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "list.csv").write_text("file,who,side,taken\na.png,7,right,2020-05-01\n")
    (tmp_path / "scans.yaml").write_text(SCANS)
    with pytest.raises(ExportError, match=r"must give at least one scan\. The reasons are above"):
        type_("import", "images", export, "--mapping", tmp_path / "scans.yaml", "--site", north)


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
    command = ("import", "images", export, "--mapping", tmp_path / "scans.yaml", "--site", north)
    assert "scans: 1 imported" in type_(*command).output
    assert "scans: 0 imported, 1 unchanged" in type_(*command).output
    (export / "list.csv").write_text("file,who,side,taken\n")
    assert "1 files of earlier imports are not in the export now" in type_(*command).output


def test_files_that_could_not_be_used_are_named_to_the_hospital(north: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "a.png").write_bytes(encode_image(make_pixels(1)))
    (export / "tab\there.png").write_bytes(encode_image(make_pixels(1))[:-30])
    (export / "list.csv").write_text(
        "file,who,side,taken\na.png,7,right,2020-05-01\ntab\there.png,7,right,2020-05-02\n"
    )
    (tmp_path / "scans.yaml").write_text(SCANS)
    said = type_("import", "images", export, "--mapping", tmp_path / "scans.yaml", "--site", north).output
    assert f"fedretina site left-out {north}" in said
    reason = "is a damaged PNG: its end is missing"
    damaged = ["quarantined", "images", str(export), r"tab\there.png", "1", reason]
    table = ["skipped", "images", str(export), "list.csv", "1", "is the table of the scans"]
    header, *rows = [line.split("\t") for line in type_("left-out", north).output.splitlines()]
    assert header == ["outcome", "kind", "export", "file", "count", "reason"]
    assert rows == [damaged]
    assert [line.split("\t") for line in type_("left-out", north, "--skipped").output.splitlines()[1:]] == [
        table,
        damaged,
    ]
    with pytest.raises(SiteError, match="must be a site folder"):
        type_("left-out", tmp_path)


def test_a_file_is_meant_by_its_path_or_by_the_name_of_one_that_comes_along(tmp_path: Path) -> None:
    own = tmp_path / "stroke_risk"
    own.write_text("")
    assert find_preset(str(own), TASKS) == own
    assert find_preset("stroke_risk", TASKS).name == "stroke_risk.yaml"
    with pytest.raises(ConfigError, match=r"--task must be a file, or one of those .* stroke_detection, .*stroke_risk"):
        find_preset("stroke", TASKS)


def test_a_file_that_is_none_is_told_by_its_option(north: Path, records: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"--mapping must be a file, or one of those .*: ist, got 'ists'"):
        type_("import", "csv", records[0], "--mapping", "ists", "--site", north)
    for command in (("import", "csv", records[0], "--mapping", records[1], "--site", north), ("check", north)):
        with pytest.raises(ConfigError, match=r"--features must be a file, or one of those .*: ist, retstroke, got"):
            type_(*command, "--features", "ists")


def typed_options() -> dict[str, list[str]]:
    """Every option of an import that has to do with its kind, by name, as somebody may type it."""
    command = typer.main.get_command(site).commands["import"]  # type: ignore[attr-defined]
    options = [option for option in command.params if option.name not in ("kind", "path", "folder", "help")]
    values = {"b_scans": "1", "pair_within_s": "60", "where": "a=b"}  # also what is so by default
    return {
        option.name: [option.opts[0]] if option.is_flag else [option.opts[0], values.get(option.name, "x")]
        for option in options
    }


def test_the_table_of_options_knows_them_all() -> None:
    assert set(typed_options()) == set(SERVES)


@pytest.mark.parametrize(
    ("option", "kind"),
    [(option, kind) for option in SERVES for kind in (*SCAN_KINDS, *RECORD_KINDS) if kind not in SERVES[option]],
)
def test_an_option_of_another_kind_is_refused(north: Path, records: tuple[Path, Path], option: str, kind: str) -> None:
    words = typed_options()[option]
    with pytest.raises(ExportError, match=f"{words[0]} must be left out: it serves {', '.join(SERVES[option])}, not"):
        type_("import", kind, records[0], *words, "--site", north)
    assert len(SiteFolder(north).events()) == 0


@pytest.mark.parametrize(("option", "kinds"), SERVES.items())
def test_an_option_is_taken_by_the_kinds_that_it_serves(option: str, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        check_options(kind, [option, "folder"])


def test_an_interrupted_import_says_that_it_can_be_run_again(
    north: Path, records: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("client.ingest.records.import_records", interrupted)
    found = type_("import", "csv", records[0], "--mapping", records[1], "--site", north)
    assert (found.exit_code, found.stdout) == (130, "")
    assert "what was imported is kept" in found.stderr
    assert "run again" in found.stderr
    assert found.stderr.count("\n") == 1
