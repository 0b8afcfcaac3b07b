"""Is a site folder read as it was written, and never written by half?"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared import site_folder
from shared.errors import SiteError
from shared.site_folder import EVENTS, IMAGES, LABELS, SUBJECT_SPLITS, Dataset, SiteFolder, write_site, write_table
from tests.factories import SYSTOLIC, make_events, small_site


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    tables = small_site()
    site = tables.write(tmp_path / "north")
    assert site.dataset() == tables.dataset
    assert site.name == "north"
    assert site.tasks() == ["detection"]
    pd.testing.assert_frame_equal(site.labels("detection"), tables.labels["detection"])
    order = ["subject_id", "code"]
    read, written = (
        frame.sort_values(order).reset_index(drop=True).drop(columns="text_value")
        for frame in (site.events(), tables.events)
    )
    pd.testing.assert_frame_equal(read, written, check_dtype=False)
    for column in ("image_id", "subject_id", "eye", "acquired_at", "modality", "pair_id", "path", "sha256"):
        assert site.images()[column].tolist() == tables.images[column].tolist()
    for path, content in tables.files.items():
        assert (site.image_files / path).read_bytes() == content


def test_every_table_has_the_types_of_the_contract(site: SiteFolder) -> None:
    for relative, schema in (("events", EVENTS), ("imaging/index", IMAGES), ("labels/detection", LABELS)):
        assert pq.read_schema(site.path / f"{relative}.parquet").remove_metadata() == schema


def test_events_are_written_by_patient_and_time_with_undated_ones_first(tmp_path: Path) -> None:
    rows = [
        (2, "2020-01-02", "b", None),
        (1, "2020-01-03", "c", None),
        (2, None, "a", None),
        (2, "2019-01-01", "d", None),
    ]
    site = write_site(tmp_path / "s", Dataset("s"), make_events(rows))
    assert site.events()["code"].tolist() == ["c", "a", "d", "b"]


def test_a_site_without_images_and_labels_reads_as_empty_tables(tmp_path: Path) -> None:
    site = write_site(tmp_path / "s", Dataset("s"), make_events([(1, "2020-01-01", "x", None)]))
    assert len(site.images()) == len(site.labels("risk")) == len(site.subject_splits()) == 0
    assert list(site.images().columns) == IMAGES.names
    assert list(site.subject_splits().columns) == SUBJECT_SPLITS.names
    assert site.tasks() == []


def test_an_existing_folder_is_never_written_over(site: SiteFolder) -> None:
    before = sorted(path.name for path in site.path.iterdir())
    with pytest.raises(SiteError, match=r"must not exist yet\. Remove it or choose another folder\."):
        write_site(site.path, Dataset("other"), make_events([]))
    assert sorted(path.name for path in site.path.iterdir()) == before
    assert site.name == "north"


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_write_that_fails_midway_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    calls = 0

    def full_disk(file: Path, frame: pd.DataFrame, schema: pa.Schema) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            file.write_bytes(b"PAR1half")
            raise OSError("No space left on device")
        write_table(file, frame, schema)

    monkeypatch.setattr(site_folder, "write_table", full_disk)
    tables = small_site()
    with pytest.raises(OSError, match="No space left"):
        write_site(tmp_path / "site", tables.dataset, tables.events, tables.images, tables.labels)
    assert calls == fails_at
    assert list(tmp_path.iterdir()) == []


def test_a_write_of_ill_typed_values_leaves_nothing(tmp_path: Path) -> None:
    tables = small_site()
    tables.labels["detection"]["subject_id"] = "Jane Doe"
    with pytest.raises(pa.ArrowException):
        write_site(tmp_path / "site", tables.dataset, tables.events, tables.images, tables.labels)
    assert list(tmp_path.iterdir()) == []


def test_images_are_moved_into_the_folder(tmp_path: Path) -> None:
    files = tmp_path / "exported"
    files.mkdir()
    (files / "a.png").write_bytes(b"x")
    site = write_site(tmp_path / "s", Dataset("s"), make_events([]), image_files=files)
    assert (site.image_files / "a.png").read_bytes() == b"x"
    assert not files.exists()


def test_columns_beyond_the_contract_are_left_out_when_read(site: SiteFolder) -> None:
    file = site.path / "events.parquet"
    frame = pd.read_parquet(file).assign(patient_name="Jane Doe")
    frame.to_parquet(file)
    assert list(site.events().columns) == EVENTS.names


def test_narrower_types_are_widened_to_the_contract(site: SiteFolder) -> None:
    file = site.path / "events.parquet"
    expected = site.events()
    frame = pd.read_parquet(file).astype({"subject_id": "int32", "numeric_value": "float64"})
    frame.to_parquet(file)
    pd.testing.assert_frame_equal(site.events(), expected)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("site: [", "must be valid YAML"),
        ("\xff", "must be given"),
        ("", "must be given"),
        ("[1, 2]", "must be a mapping"),
        ("site: 3", "site must be of type str, got 3"),
        ("site: a\nsiet: b", "siet is not a setting. Did you mean"),
        ("site: a\nschema_version: 99", "schema_version must be <= 1, got 99"),
        ("site: a\nunits: {x: 1}", "units.x must be of type str, got 1"),
        ("site: a\nhorizons_days: {risk: long}", "horizons_days.risk must be of type int, got 'long'"),
    ],
)
def test_a_faulty_dataset_file_is_refused_in_one_line(site: SiteFolder, text: str, rule: str) -> None:
    content = text.encode("latin-1")
    (site.path / "dataset.yaml").write_bytes(content)
    with pytest.raises(SiteError) as caught:
        site.dataset()
    assert (rule if content != b"\xff" else "must be valid YAML") in str(caught.value)
    assert "dataset.yaml" in str(caught.value)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"absent/dataset\.yaml must exist\. Point to a folder .*fedretina site init"):
        SiteFolder(tmp_path / "absent").dataset()


def test_units_keep_their_codes(site: SiteFolder) -> None:
    assert site.dataset().units == {SYSTOLIC: "mm[Hg]"}
