"""Is every fault of a site folder found, named, and listed with all the others?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.schema import SiteFaultsError, check_site
from shared.site_folder import SUBJECT_SPLITS, SiteFolder, write_table
from simulation.cohorts.build import Built
from tests.factories import SYSTOLIC, VISIT, empty_site, small_site

Break = Callable[[SiteFolder], None]
EVENTS, INDEX, LABELS = "events.parquet", "imaging/index.parquet", "labels/detection.parquet"


def change(relative: str, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Break:
    """Rewrite a table, with whatever types the edit leaves."""

    def apply(site: SiteFolder) -> None:
        file = site.path / relative
        edit(pd.read_parquet(file)).to_parquet(file)

    return apply


def cell(relative: str, column: str, value: object, row: int = 0) -> Break:
    def edit(frame: pd.DataFrame) -> pd.DataFrame:
        frame[column] = [value if i == row else old for i, old in enumerate(frame[column])]
        return frame

    return change(relative, edit)


def repeat_first(relative: str) -> Break:
    return change(relative, lambda frame: pd.concat([frame, frame.iloc[:1]]))


def drop(relative: str, column: str) -> Break:
    return change(relative, lambda frame: frame.drop(columns=column))


def overwrite(relative: str, content: bytes) -> Break:
    return lambda site: void((site.path / relative).write_bytes(content))


def truncate(relative: str) -> Break:
    return lambda site: void((site.path / relative).write_bytes((site.path / relative).read_bytes()[:-50]))


def splits(rows: list[tuple[int, str]]) -> Break:
    def apply(site: SiteFolder) -> None:
        frame = pd.DataFrame(rows, columns=["subject_id", "split"])
        write_table(site.path / "subject_splits.parquet", frame, SUBJECT_SPLITS)

    return apply


def retyped(relative: str, column: str, kind: pa.DataType) -> Break:
    def apply(site: SiteFolder) -> None:
        table = pq.ParquetFile(site.path / relative).read()
        index = table.schema.get_field_index(column)
        pq.write_table(table.set_column(index, column, pa.nulls(len(table), kind).fill_null("x")), site.path / relative)

    return apply


def void(_: object) -> None:
    return None


FAULTS: dict[str, tuple[Break, str]] = {
    "missing events": (
        lambda s: (s.path / EVENTS).unlink(),
        "events.parquet must exist. Import this site's data again.",
    ),
    "events no parquet": (
        overwrite(EVENTS, b"subject_id,time\n"),
        "events.parquet must be a readable parquet file, got",
    ),
    "truncated parquet": (truncate(LABELS), "detection.parquet must be a readable parquet file, got"),
    "empty file": (overwrite(INDEX, b""), "index.parquet must be a readable parquet file, got"),
    "missing column": (drop(EVENTS, "code"), "events.parquet: column code must be present. Columns: subject_id, time"),
    "missing image column": (drop(INDEX, "sha256"), "imaging/index.parquet: column sha256 must be present"),
    "missing label column": (drop(LABELS, "boolean_value"), "labels/detection.parquet: column boolean_value must be p"),
    "ill-typed id": (
        retyped(EVENTS, "subject_id", pa.string()),
        "events.parquet: column subject_id must be int64, got ",
    ),
    "ill-typed time": (retyped(LABELS, "prediction_time", pa.string()), "column prediction_time must be timestamp[us]"),
    "fractional id": (cell(LABELS, "subject_id", 1.5), "labels/detection.parquet: column subject_id must be int64"),
    "broken yaml": (overwrite("dataset.yaml", b"site: ["), "dataset.yaml must be valid YAML, got"),
    "no site name": (overwrite("dataset.yaml", b"site: ''"), "dataset.yaml: site must not be empty"),
    "no date": (
        overwrite("dataset.yaml", b"site: a\nextracted_at: soon"),
        "extracted_at must be an ISO date, got 'soon'",
    ),
    "no unit": (
        overwrite("dataset.yaml", b"site: a"),
        f"code {SYSTOLIC} must have a unit, as it has numeric values. Add ",
    ),
    "null subject": (
        cell(EVENTS, "subject_id", None),
        "events.parquet: column subject_id must not be null, got '1 null(s)'",
    ),
    "null code": (cell(EVENTS, "code", None), "events.parquet: column code must not be null, got '1 null(s)'"),
    "null image id": (cell(INDEX, "image_id", None), "imaging/index.parquet: column image_id must not be null"),
    "null image subject": (
        cell(INDEX, "subject_id", None),
        "imaging/index.parquet: column subject_id must not be null",
    ),
    "null acquired_at": (
        cell(INDEX, "acquired_at", None),
        "imaging/index.parquet: column acquired_at must not be null",
    ),
    "null path": (cell(INDEX, "path", None), "imaging/index.parquet: column path must not be null"),
    "null digest": (cell(INDEX, "sha256", None), "imaging/index.parquet: column sha256 must not be null"),
    "null label": (
        cell(LABELS, "boolean_value", None),
        "labels/detection.parquet: column boolean_value must not be null",
    ),
    "null label subject": (cell(LABELS, "subject_id", None), "detection.parquet: column subject_id must not be null"),
    "event after extract": (
        cell(EVENTS, "time", pd.Timestamp("2025-01-01")),
        "events.parquet: time must not be later than extracted_at 2024-12-31, got '1 later event(s)'",
    ),
    "unknown eye": (cell(INDEX, "eye", "OD"), "imaging/index.parquet: eye must be one of R, L, got 'OD'"),
    "unknown modality": (cell(INDEX, "modality", "OCTA"), "modality must be one of OCT, IR, got 'OCTA'"),
    "duplicate image": (
        cell(INDEX, "image_id", "image-001"),
        "image_id must be unique, got 'image-001'. Remove the dup",
    ),
    "upward path": (
        cell(INDEX, "path", "../../dataset.yaml"),
        "path must stay inside imaging/files, got '../../dataset",
    ),
    "inner upward path": (
        cell(INDEX, "path", "1/../../../x"),
        "path must stay inside imaging/files, got '1/../../../x'",
    ),
    "absolute path": (cell(INDEX, "path", "/etc/hostname"), "path must stay inside imaging/files, got '/etc/hostname'"),
    "absent file": (cell(INDEX, "path", "1/none.png"), "path must name a file in imaging/files, got '1/none.png'"),
    "folder for a file": (cell(INDEX, "path", "1"), "path must name a file in imaging/files, got '1'"),
    "pair of two patients": (
        cell(INDEX, "pair_id", "pair-2"),
        "must join images of one eye of one patient, got 'pair-2'",
    ),
    "pair of two eyes": (cell(INDEX, "eye", "L"), "must join images of one eye of one patient, got 'pair-1'"),
    "pair of two OCT": (cell(INDEX, "modality", "OCT", 1), "must join one OCT and one IR at most, got 'pair-1'"),
    "two splits": (
        splits([(1, "train"), (1, "held_out"), (2, "train"), (2, "train")]),
        "subject_splits.parquet must put each patient in one split, got '1 patient(s) in two'. Keep one row a patient.",
    ),
    "unknown split": (splits([(1, "test")]), "split must be one of train, tuning, held_out, got 'test'"),
    "label twice": (
        repeat_first(LABELS),
        "labels/detection.parquet must hold one label a patient and time, got '1 repeat",
    ),
    "label of a stranger": (cell(LABELS, "subject_id", 999), "must label patients of this site, got '1 unknown'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(site: SiteFolder, name: str) -> None:
    damage, message = FAULTS[name]
    check_site(site)
    damage(site)
    with pytest.raises(SiteFaultsError) as caught:
        check_site(site)
    assert any(message in str(fault) for fault in caught.value.faults), str(caught.value)
    assert all("\n" not in str(fault) and fault.remedy for fault in caught.value.faults)


def test_data_after_the_label_only_is_a_fault(tmp_path: Path) -> None:
    tables = small_site()
    late = tables.events["subject_id"] == 5
    tables.events.loc[late, "time"] = VISIT + pd.Timedelta(days=1)
    tables.images.loc[tables.images["subject_id"] == 5, "acquired_at"] = VISIT + pd.Timedelta(hours=1)
    with pytest.raises(SiteFaultsError, match=r"must have data before the prediction time, got '1 label\(s\)"):
        check_site(tables.write(tmp_path / "s"))


def test_an_undated_event_is_data_before_every_label(tmp_path: Path) -> None:
    tables = small_site(modalities=())
    tables.events = tables.events[tables.events["time"].isna()]
    check_site(tables.write(tmp_path / "s"))


def test_all_faults_are_listed_at_once_one_a_line(site: SiteFolder) -> None:
    together = ["no unit", "duplicate image", "two splits", "label twice", "null code", "unknown eye", "upward path"]
    for name in together:
        FAULTS[name][0](site)
    with pytest.raises(SiteFaultsError) as caught:
        check_site(site)
    text = str(caught.value)
    for name in together:
        assert FAULTS[name][1] in text
    lines = text.splitlines()
    assert lines[0].endswith(f"breaks the contract in {len(caught.value.faults)} place(s):")
    assert len(lines) == 1 + len(caught.value.faults)


def test_an_unreadable_table_does_not_hide_the_faults_of_the_others(site: SiteFolder) -> None:
    for name in ("events no parquet", "duplicate image", "two splits", "null label", "broken yaml"):
        FAULTS[name][0](site)
    with pytest.raises(SiteFaultsError) as caught:
        check_site(site)
    text = str(caught.value)
    for name in ("events no parquet", "duplicate image", "two splits", "broken yaml"):
        assert FAULTS[name][1] in text


def test_a_missing_modality_is_normal(tmp_path: Path) -> None:
    for number, modalities in enumerate([("OCT",), ("IR",), ()]):
        check_site(small_site(modalities=modalities).write(tmp_path / str(number)))


def test_two_eyes_of_one_patient_are_two_pairs(tmp_path: Path) -> None:
    tables = small_site()
    tables.add_image(1, "OCT", "L", pair="left")
    tables.add_image(1, "IR", "L", pair="left")
    check_site(tables.write(tmp_path / "s"))


def test_every_synthetic_site_keeps_the_contract(cohort: Built) -> None:
    for path in cohort.sites:
        check_site(SiteFolder(path))


def test_a_site_without_anything_yet_has_no_fault(tmp_path: Path) -> None:
    check_site(empty_site().write(tmp_path / "north"))
