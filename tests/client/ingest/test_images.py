"""Does a table of files become what its mapping says, and is a row that says too little told by its reason?"""

from __future__ import annotations

import csv
import io
import os
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.ingest.export import QUARANTINED, SKIPPED, ExportError, LeftOut, LeftOutError, Scan, ScanOptions
from client.ingest.images import IMAGE_FILES, find, read
from client.ingest.scans import Counts, ScanSummary, import_scans
from shared.schema import check_site
from shared.site_folder import SiteFolder
from tests.client.ingest.test_pictures import bomb
from tests.client.ingest.test_scans import new_site
from tests.factories import encode_image, make_pixels

MAPPING = {"path": "file", "patient": "pid", "eye": "side", "acquired_at": "date", "modality": "type"}
COLUMNS = ["file", "pid", "side", "date", "type"]
ROW = ["a.png", "4711", "OD", "2020-06-01T10:00:00", "OCT"]


class Export:
    """A folder with a table; rows are lists of cells."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mapping_file = folder / "export", folder / "mapping.yaml"
        self.folder.mkdir()
        self.map()
        for seed, name in enumerate(("a.png", "b.png", "c.png")):
            (self.folder / name).write_bytes(encode_image(make_pixels(seed)))

    def map(self, **changes: Any) -> None:
        self.mapping_file.write_text(yaml.safe_dump({**MAPPING, **changes}))

    def table(self, *rows: list[str], columns: list[str] | None = None, separator: str = ",") -> None:
        text = io.StringIO()
        csv.writer(text, delimiter=separator).writerows([columns or COLUMNS, *rows])
        (self.folder / "scans.csv").write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")

    def scans(self) -> list[Scan | LeftOut]:
        """What the importer yields for each source, but for the table."""
        found: list[Scan | LeftOut] = []
        for source in find(self.folder, self.mapping_file):
            try:
                found += read(source, ScanOptions())
            except LeftOutError as error:
                found.append(error.left_out)
        assert found.pop(0) == LeftOut(SKIPPED, "is the table of the scans")
        return found

    def scan(self) -> Scan:
        [scan] = self.scans()
        assert isinstance(scan, Scan)
        return scan

    def reason(self) -> str:
        [left_out] = self.scans()
        assert isinstance(left_out, LeftOut)
        assert left_out.outcome == QUARANTINED
        return left_out.reason

    def run(self, site: Path) -> ScanSummary:
        return import_scans(site, self.folder, IMAGE_FILES, "images", self.mapping_file, threads=2)


@pytest.fixture
def export(tmp_path: Path) -> Export:
    return Export(tmp_path)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return new_site(tmp_path / "site")


def test_a_row_becomes_the_scan_that_it_describes(export: Export) -> None:
    export.map(device="dev", spacing_row="sr", spacing_column="sc", quality="q")
    export.table([*ROW, "Spectralis", "0.0039", "0.0118", "27"], columns=[*COLUMNS, "dev", "sr", "sc", "q"])
    scan = export.scan()
    assert (scan.patient, scan.eye, scan.modality, scan.device) == ("4711", "R", "OCT", "Spectralis")
    assert (scan.acquired_at, scan.spacing_mm, scan.quality) == (datetime(2020, 6, 1, 10), (0.0039, 0.0118), 27.0)
    assert scan.image == encode_image(make_pixels(0))


@pytest.mark.parametrize(
    ("word", "eye"), [("OD", "R"), ("os", "L"), ("Right", "R"), ("LEFT", "L"), ("r", "R"), (" L ", "L"), ("droit", "R")]
)
def test_words_for_eyes(export: Export, word: str, eye: str) -> None:
    export.map(eye_values={"droit": "R"})
    export.table(["a.png", "1", word, "2020-06-01", "OCT"])
    assert export.scan().eye == eye


@pytest.mark.parametrize(("word", "modality"), [("oct", "OCT"), ("IR", "IR"), ("Infrared", "IR"), ("cSLO", "IR")])
def test_words_for_modalities(export: Export, word: str, modality: str) -> None:
    export.map(modality_values={"cSLO": "IR"})
    export.table(["a.png", "1", "R", "2020-06-01", word])
    assert export.scan().modality == modality


def test_one_modality_and_device_for_all(export: Export) -> None:
    export.mapping_file.write_text(
        yaml.safe_dump({**{k: v for k, v in MAPPING.items() if k != "modality"}, "every_modality": "IR"})
        + "every_device: Spectralis\n"
    )
    export.table(ROW)
    assert (export.scan().modality, export.scan().device) == ("IR", "Spectralis")


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        ("2020-06-01", {}, datetime(2020, 6, 1)),
        ("2020-06-01 10:11:12.5", {}, datetime(2020, 6, 1, 10, 11, 12, 500_000)),
        ("01.06.2020 10:11", {"time_format": "%d.%m.%Y %H:%M"}, datetime(2020, 6, 1, 10, 11)),
        ("2020-06-01T10:00:00Z", {"time_zone": "Europe/Berlin"}, datetime(2020, 6, 1, 12)),
        ("2020-01-01T10:00:00+05:00", {"time_zone": "Europe/Berlin"}, datetime(2020, 1, 1, 6)),
    ],
)
def test_times_are_the_sites(export: Export, text: str, changes: dict[str, str], expected: datetime) -> None:
    export.map(**changes)
    export.table(["a.png", "1", "R", text, "OCT"])
    assert export.scan().acquired_at == expected


@pytest.mark.parametrize(
    ("place", "cell", "reason"),
    [
        (0, "", "has no path in the table"),
        (0, "../export/a.png", "has a path that leads out of the export"),
        (0, "x/../../a.png", "has a path that leads out of the export"),
        (0, "/etc/hostname", "has a path that leads out of the export"),
        (0, "C:\\scans\\a.png", "has a path that leads out of the export"),
        (0, "..\\a.png", "has a path that leads out of the export"),
        (1, "", "has no patient"),
        (2, "OU", "has an eye that is neither right nor left"),
        (2, "", "has an eye that is neither right nor left"),
        (3, "", "has a date that cannot be read"),
        (3, "yesterday", "has a date that cannot be read"),
        (3, "2020-06-31", "has a date that cannot be read"),
        (3, "2020-06-01T10:00:00Z", "has a time with an offset from UTC, and the mapping names no time_zone"),
        (4, "FA", "has a modality that is neither OCT nor infrared"),
    ],
)
def test_a_row_that_says_too_little_is_told_by_its_reason(export: Export, place: int, cell: str, reason: str) -> None:
    export.table([cell if place == number else value for number, value in enumerate(ROW)])
    assert export.reason() == reason


def test_a_row_with_too_many_cells_is_not_guessed_at(export: Export) -> None:
    export.table([*ROW, "more"])
    assert export.reason() == "is a row that does not fit the columns of the table"


def test_other_separators_encodings_and_slashes(export: Export) -> None:
    (export.folder / "Bilder").mkdir()
    (export.folder / "Bilder" / "ä.png").write_bytes(encode_image(make_pixels(5)))
    export.map(separator=";", encoding="cp1252", patient="Name, Übung")
    text = "file;Name, Übung;side;date;type\n.\\Bilder\\ä.png;7;OS;2020-06-01;OCT\n"
    (export.folder / "scans.csv").write_text(text, encoding="cp1252")
    assert (export.scan().patient, export.scan().eye) == ("7", "L")


def test_a_byte_order_mark_is_no_part_of_the_first_column(export: Export) -> None:
    (export.folder / "scans.csv").write_text(
        "file,pid,side,date,type\na.png,1,R,2020-06-01,OCT\n", encoding="utf-8-sig"
    )
    assert export.scan().patient == "1"


def pair_rows(*rows: tuple[str, str, str, str]) -> list[list[str]]:
    """Rows of (file, modality, hour, pair)."""
    return [[name, "1", "R", f"2020-06-01T{hour}:00", kind, pair] for name, kind, hour, pair in rows]


@pytest.mark.parametrize(
    ("rows", "pairs"),
    [
        ([("a.png", "OCT", "10", "p"), ("b.png", "IR", "15", "p")], 1),
        ([("b.png", "IR", "15", "p"), ("a.png", "OCT", "10", "p")], 1),
        ([("a.png", "OCT", "10", "p"), ("b.png", "IR", "10", "q")], 0),
        ([("a.png", "OCT", "10", "p"), ("b.png", "IR", "10", "p"), ("c.png", "IR", "11", "p")], 0),
        ([("a.png", "OCT", "10", ""), ("b.png", "IR", "10", "")], 1),
    ],
)
def test_a_column_of_pairs(export: Export, site: Path, rows: list[tuple[str, str, str, str]], pairs: int) -> None:
    export.map(pair="pair")
    export.table(*pair_rows(*rows), columns=[*COLUMNS, "pair"])
    assert export.run(site).pairs == pairs


def test_a_pair_may_be_of_two_tables(export: Export, site: Path, tmp_path: Path) -> None:
    export.map(pair="pair")
    columns = [*COLUMNS, "pair"]
    export.table(*pair_rows(("a.png", "OCT", "10", "p"), ("b.png", "OCT", "12", "q")), columns=columns)
    assert export.run(site).pairs == 0
    (tmp_path / "other").mkdir()
    other = Export(tmp_path / "other")
    other.map(pair="pair")
    other.table(*pair_rows(("a.png", "IR", "18", "p"), ("b.png", "IR", "19", "q")), columns=columns)
    assert other.run(site).pairs == 2


def test_the_mapping_tells_what_is_wrong_with_it(export: Export) -> None:
    export.table(ROW)
    for changes, said in (
        (
            {"eye": "oog"},
            r"mapping: eye must name a column of scans.csv, got 'oog'. Columns: file, pid, side, date, type.",
        ),
        ({"eyes": "side"}, "mapping.yaml: eyes is not a setting. Did you mean mapping.yaml: eye"),
        ({"eye_values": {"X": "B"}}, "eye_values.X must be one of R, L"),
        ({"every_modality": "OCT"}, "modality must be given, or every_modality"),
        ({"time_zone": "Mars/North"}, "must be known"),
        ({"table": "../scans.csv"}, "table must lie inside the export"),
        ({"table": "other.csv"}, "other.csv must be readable"),
        ({"encoding": "klingon"}, "encoding"),
    ):
        export.map(**changes)
        with pytest.raises(ExportError, match=said):
            export.scans()
    for text in ("a: [", "- a", "\x00"):
        export.mapping_file.write_text(text)
        with pytest.raises(ExportError):
            export.scans()
    with pytest.raises(ExportError, match="--mapping"):
        list(find(export.folder, None))


def test_a_table_must_be_named_where_there_are_two(export: Export) -> None:
    export.table(ROW)
    (export.folder / "other.csv").write_text("x\n")
    with pytest.raises(ExportError, match="table must be named"):
        export.scans()
    export.map(table="scans.csv")
    assert export.scan().patient == "4711"


def test_only_rows_that_changed_are_read_again(export: Export, site: Path) -> None:
    export.table(["a.png", "1", "R", "2020-06-01", "OCT"], ["b.png", "1", "L", "2020-06-01", "OCT"])
    export.run(site)
    export.table(
        ["c.png", "1", "R", "2020-06-02", "OCT"],
        ["a.png", "1", "R", "2020-06-01", "OCT"],
        ["b.png", "1", "R", "2020-06-03", "OCT"],
    )
    summary = export.run(site)
    assert (summary.scans.imported, summary.scans.unchanged) == (2, 1)
    assert SiteFolder(site).images()["eye"].tolist() == ["R", "R", "R"]


def test_an_export_may_be_the_table_itself(export: Export, site: Path) -> None:
    export.table(ROW)
    summary = import_scans(site, export.folder / "scans.csv", IMAGE_FILES, "images", export.mapping_file)
    assert summary.sources == Counts(imported=1, skipped=1)


def hostile(export: Export) -> int:
    """Fill an export with what should not be in one; returns the number of files and links."""
    folder, outside = export.folder, export.folder.parent / "outside.png"
    outside.write_bytes(encode_image(make_pixels(7)))
    png, rows = encode_image(make_pixels(9, 40, 40)), []
    whole = {
        "png": png,
        "jpg": encode_image(make_pixels(9, 40, 40), "JPEG"),
        "tif": encode_image(make_pixels(9), "TIFF"),
    }
    dice = random.Random(5)
    files: dict[str, bytes] = {"empty.png": b"", "bomb.png": bomb(60_000, 60_000), "text.png": b"PK\x03\x04 no picture"}
    for suffix, content in whole.items():
        files[f"cut.{suffix}"] = content[: len(content) // 2]
        files[f"wrong-{suffix}.dcm"] = content
        flipped = bytearray(content)
        flipped[dice.randrange(8, len(content))] ^= 4
        files[f"flipped.{suffix}"] = bytes(flipped)
    files[os.fsdecode(b"latin-\xe4.png")] = png + b"\0"
    files[' spaces , and "quotes" \n.png'] = png
    for name, content in files.items():
        (folder / name).write_bytes(content)
        rows.append([name.strip(), "Doe^Jane", "R", "2020-06-01", "OCT"])
    (folder / "out.png").symlink_to(outside)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "circle").symlink_to(folder)
    for name in (
        "out.png",
        "loop.png",
        "circle",
        "circle/a.png",
        ".",
        "nul\0.png",
        "gone.png",
        "x" * 5000,
        "../outside.png",
    ):
        rows.append([name, "Doe^Jane", "R", "2020-06-01", "OCT"])
    export.table(*rows)
    return len(files) + 3 + 3 + 1  # links; the first three pictures; the table


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd metadata in files that it can decode
def test_a_hostile_export_leaves_a_whole_folder_and_a_reason_for_every_file(export: Export, site: Path) -> None:
    files = hostile(export)
    summary = export.run(site)
    check_site(SiteFolder(site))
    assert not (site / "imaging" / ".drafts").exists()
    sources = summary.sources
    rows_without_file = 7  # circle/a.png and what follows, but for the folder
    assert sources.imported + sources.skipped + sources.quarantined == files + rows_without_file
    assert sources.imported >= 4
    assert sum(item.count for item in summary.reasons) == sources.skipped + sources.quarantined
    assert "Doe" not in str(summary.reasons)
    again = export.run(site)
    assert (again.reasons, again.sources.unchanged) == (summary.reasons, sources.imported)


def test_a_table_of_a_hundred_thousand_columns(export: Export, site: Path) -> None:
    many = [f"column{number}" for number in range(100_000)]
    export.table([*ROW, *many], columns=[*COLUMNS, *many])
    assert export.run(site).scans.imported == 1
    export.map(patient="nobody")
    with pytest.raises(ExportError) as caught:
        export.run(site)
    assert len(str(caught.value)) < 3000


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.binary(max_size=300) | st.text('",\n\r;a.pngODCT0123456789-', max_size=200).map(str.encode))
def test_any_bytes_as_a_table_are_refused_or_read(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "export"
    if not folder.exists():
        Export(tmp_path)
    (folder / "scans.csv").write_bytes(b"file,pid,side,date,type\n" + data)
    for source in find(folder, tmp_path / "mapping.yaml"):
        try:
            list(read(source, ScanOptions()))
        except (LeftOutError, OSError, ValueError):
            continue
    (folder / "scans.csv").write_bytes(data)
    try:
        list(find(folder, tmp_path / "mapping.yaml"))
    except ExportError:
        return
