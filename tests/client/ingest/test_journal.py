"""Is what was imported remembered as it was, whatever files are called, and told without a name?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.ingest import journal
from client.ingest.export import QUARANTINED, SKIPPED, LeftOut
from client.ingest.journal import IMPORTED, Entry, JournalSummary, count_reasons, outcome_of, read_journal, source_id
from client.ingest.pseudonyms import IMPORTS
from shared.errors import SiteError

names = (st.text(st.characters(exclude_categories=["Cs"])) | st.binary().map(os.fsdecode)).filter(bool)
left_outs = st.builds(LeftOut, st.sampled_from([SKIPPED, QUARANTINED]), st.text(max_size=300), st.integers(1, 9))
entries = st.builds(
    Entry,
    kind=st.sampled_from(["dicom", "images"]),
    export=names,
    name=names,
    files=st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**62))).map(tuple),
    fingerprint=st.text(st.sampled_from("0123456789abcdef")),
    outcome=st.sampled_from([IMPORTED, SKIPPED, QUARANTINED]),
    left_out=st.lists(left_outs).map(count_reasons),
    scans=st.integers(0, 9),
)


def write(folder: Path, *made: Entry) -> None:
    (folder / IMPORTS).mkdir(parents=True, exist_ok=True)
    journal.write(folder, journal.SCANS.empty_table(), {entry.id: entry for entry in made})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(entries, max_size=4))
def test_what_is_read_is_what_was_written(tmp_path: Path, made: list[Entry]) -> None:
    write(tmp_path, *made)
    assert journal.read_entries(tmp_path) == {entry.id: entry for entry in made}


def entry(name: str, outcome: str, *left_out: LeftOut, kind: str = "dicom") -> Entry:
    return Entry(kind, "/mnt/Doe^Jane", name, ((1, 2),), "ab", outcome, left_out, int(outcome == IMPORTED))


def test_the_summary_counts_and_names_nobody(tmp_path: Path) -> None:
    damaged, foreign = LeftOut(QUARANTINED, "is damaged", 2), LeftOut(SKIPPED, "is no dicom file", 7)
    write(
        tmp_path,
        entry("Doe^Jane/1.dcm", IMPORTED, damaged),
        entry("Doe^Jane/2.dcm", QUARANTINED, damaged),
        entry("3.png", IMPORTED, kind="images"),
        entry("", SKIPPED, foreign),
    )
    summary = read_journal(tmp_path)
    assert summary.sources == {
        ("dicom", IMPORTED): 1,
        ("dicom", QUARANTINED): 1,
        ("dicom", SKIPPED): 7,
        ("images", IMPORTED): 1,
    }
    assert summary.reasons == {
        ("dicom", QUARANTINED, "is damaged"): 4,
        ("dicom", SKIPPED, "is no dicom file"): 7,
    }
    assert "Doe" not in str(summary)


def test_a_folder_without_imports_has_an_empty_journal(tmp_path: Path) -> None:
    assert read_journal(tmp_path) == JournalSummary({}, {})


def test_its_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    with journal.importing(tmp_path):
        write(tmp_path, entry("1.dcm", IMPORTED))
    modes = {file.name: file.stat().st_mode & 0o777 for file in [*(tmp_path / "state").rglob("*"), tmp_path / "state"]}
    assert modes == {
        "state": 0o700,
        "imports": 0o700,
        "lock": 0o600,
        "scans.parquet": 0o600,
        "sources.parquet": 0o600,
    }


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    write(tmp_path, entry("1.dcm", IMPORTED))
    file = tmp_path / IMPORTS / "sources.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(SiteError, match="readable table"):
        read_journal(tmp_path)


@given(st.lists(left_outs, max_size=6))
def test_reasons_are_counted_whatever_their_order(left_out: list[LeftOut]) -> None:
    counted = count_reasons(left_out)
    assert sum(item.count for item in counted) == sum(item.count for item in left_out)
    assert count_reasons(left_out[::-1]) == count_reasons(counted) == counted
    assert all(len(item.reason) <= 200 and "\n" not in item.reason for item in counted)


def test_an_outcome_is_the_best_that_can_be_said() -> None:
    skipped, quarantined = LeftOut(SKIPPED, "x"), LeftOut(QUARANTINED, "y")
    assert outcome_of(1, [quarantined]) == IMPORTED
    assert outcome_of(0, [skipped, quarantined]) == QUARANTINED
    assert outcome_of(0, [skipped]) == outcome_of(0, []) == SKIPPED


def test_sources_of_two_kinds_or_exports_are_two() -> None:
    ids = {source_id(kind, export, name) for kind in "ab" for export in ("x", "y") for name in ("1", "2")}
    assert len(ids) == 8
    assert source_id("a", "b", "cd") != source_id("a", "bc", "d")
