"""Is what was imported remembered as it was, whatever files are called, and told without a name?"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.database import database
from client.ingest import journal
from client.ingest.export import QUARANTINED, SKIPPED, LeftOut
from client.ingest.journal import (
    IMPORTED,
    JOURNAL,
    Entry,
    JournalSummary,
    KeptScan,
    Reasons,
    Unlisted,
    open_journal,
    outcome_of,
    read_journal,
    read_left_out_files,
    source_id,
)
from client.ingest.pseudonyms import IMPORTS
from shared.errors import SiteError


def counted(left_out: Iterable[LeftOut]) -> tuple[LeftOut, ...]:
    reasons = Reasons()
    reasons.add(*left_out)
    return reasons.counted()


names = (st.text(st.characters(exclude_categories=["Cs"])) | st.binary().map(os.fsdecode)).filter(bool)
left_outs = st.builds(
    LeftOut,
    st.sampled_from([SKIPPED, QUARANTINED]),
    st.text(max_size=300),
    st.integers(1, 9),
    st.sampled_from(["", "scan pattern 6"]),
)
entries = st.builds(
    Entry,
    kind=st.sampled_from(["dicom", "images"]),
    export=names,
    name=names,
    files=st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**62))).map(tuple),
    fingerprint=st.text(st.sampled_from("0123456789abcdef")),
    outcome=st.sampled_from([IMPORTED, SKIPPED, QUARANTINED]),
    left_out=st.lists(left_outs).map(lambda left_out: counted(left_out)),
    scans=st.integers(0, 9),
)


def write(folder: Path, *made: Entry) -> None:
    with open_journal(folder) as kept:
        for one in made:
            kept.put_entry(one)
        kept.commit()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(entries, max_size=4))
def test_what_is_read_is_what_was_written(tmp_path: Path, made: list[Entry]) -> None:
    with open_journal(tmp_path) as kept:
        for one in made:
            kept.put_entry(one)
            assert kept.entries([one.id]) == {one.id: one}
        kept.commit()
    with open_journal(tmp_path) as kept:
        last = {one.id: one for one in made}
        assert kept.entries([*last, "unknown"]) == last
        assert all(one.id in set(kept.sources(one.kind, one.export)) for one in made)
        assert kept.is_empty() == (not made)


def test_a_journal_of_nothing_is_not_left(tmp_path: Path) -> None:
    with open_journal(tmp_path) as kept:
        assert (tmp_path / JOURNAL).exists()
        kept.commit()
    assert not (tmp_path / JOURNAL).exists()


def test_what_no_source_stands_for_is_remembered_and_forgotten(tmp_path: Path) -> None:
    note, odd = (
        Unlisted("note.txt", 0, SKIPPED, "is no dicom file"),
        Unlisted("\udcff", 2, QUARANTINED, "is listed twice"),
    )
    with open_journal(tmp_path) as kept:
        kept.put_unlisted("dicom", "/mnt/a", [note, odd])
        kept.put_unlisted("dicom", "/mnt/b", [note])
        kept.put_unlisted("dicom", "/mnt/a", [note._replace(reason="is a link")])
        assert set(kept.unlisted("dicom", "/mnt/a")) == {note._replace(reason="is a link"), odd}
        kept.drop_unlisted("dicom", "/mnt/a", [note])
        assert list(kept.unlisted("dicom", "/mnt/a")) == [odd]
        assert list(kept.unlisted("dicom", "/mnt/b")) == [note]
        assert list(kept.unlisted("images", "/mnt/b")) == []
        assert not kept.is_empty()
        kept.commit()
    assert [(item.export, item.name, item.left_out.reason) for item in read_left_out_files(tmp_path)] == [
        ("/mnt/a", "\udcff", "is listed twice"),
        ("/mnt/b", "note.txt", "is no dicom file"),
    ]


def test_files_are_named_with_every_reason(tmp_path: Path) -> None:
    assert list(read_left_out_files(tmp_path)) == []
    damaged, foreign = LeftOut(QUARANTINED, "is damaged", 2), LeftOut(SKIPPED, "is of neither eye")
    write(tmp_path, entry("1.dcm", IMPORTED, damaged, foreign), entry("2.dcm", IMPORTED))
    found = [(item.kind, item.name, item.left_out) for item in read_left_out_files(tmp_path)]
    assert found == [("dicom", "1.dcm", damaged), ("dicom", "1.dcm", foreign)]


def kept_scan(image_id: str, source: str, **changes: object) -> KeptScan:
    made = KeptScan(
        image_id=image_id,
        subject_id=2**63 - 1,
        eye="R",
        acquired_us=-1,
        modality="OCT",
        device="",
        path=f"{image_id[:2]}/{image_id}.png",
        height=496,
        width=512,
        spacing_row=None,
        spacing_column=0.1,
        sha256="ab",
        quality=None,
        partner=None,
        is_central=False,
        bytes=9,
        source=source,
    )
    return made._replace(**changes)  # type: ignore[arg-type]


def test_scans_come_and_go_with_their_source(tmp_path: Path) -> None:
    first, second = kept_scan("aa1", "s", quality=0.5, partner="bb"), kept_scan("aa2", "s", is_central=True)
    with open_journal(tmp_path) as kept:
        kept.put_entry(entry("1.dcm", IMPORTED))
        for scan in (first, second, kept_scan("aa3", "t")):
            kept.put_scan(scan)
        kept.commit()
        kept.put_scan(kept_scan("aa4", "s"))  # and not committed
    with open_journal(tmp_path) as kept:
        assert kept.scans(["aa1", "aa2", "aa4"]) == {"aa1": first, "aa2": second}
        assert kept.scans_from(["s", "u"]) == {"s": [first, second], "u": []}
        kept.put_scan(first._replace(source="t"))
        for scan in (first, second):
            kept.drop_scan(scan.image_id, "s")
        assert sorted(kept.scans(["aa1", "aa2", "aa3"])) == ["aa1", "aa3"]
        assert kept.paths("aa") == {"aa/aa1.png", "aa/aa3.png"}
        assert kept.paths("a") == kept.paths("") == kept.paths("aa")
        assert kept.paths("ab") == kept.paths("aa1x") == set()
        kept.commit()


@pytest.mark.parametrize("waiting", [0, 3])
def test_many_are_written_and_found_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int) -> None:
    monkeypatch.setattr(journal, "_WAITING", waiting)
    made = [entry(f"{number}.dcm", IMPORTED) for number in range(1200)]  # more than fit in a statement
    with open_journal(tmp_path) as kept:
        for one in made:
            kept.put_scan(kept_scan(one.id, one.id))
            kept.put_entry(one)
        assert kept.entries([one.id for one in made]) == {one.id: one for one in made}
        assert len(kept.scans([one.id for one in made])) == 1200
        assert all(len(scans) == 1 for scans in kept.scans_from([one.id for one in made]).values())


def test_reading_does_not_write(tmp_path: Path) -> None:
    write(tmp_path, entry("1.dcm", QUARANTINED, LeftOut(QUARANTINED, "is damaged")))
    file = tmp_path / JOURNAL
    before = (file.read_bytes(), file.stat().st_mtime_ns)
    read_journal(tmp_path)
    with open_journal(tmp_path) as kept:
        kept.commit()
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


def entry(name: str, outcome: str, *left_out: LeftOut, kind: str = "dicom") -> Entry:
    return Entry(kind, "/mnt/Doe^Jane", name, ((1, 2),), "ab", outcome, left_out, int(outcome == IMPORTED))


def test_the_summary_counts_and_names_nobody(tmp_path: Path) -> None:
    damaged = LeftOut(QUARANTINED, "is damaged", 2)
    write(
        tmp_path,
        entry("Doe^Jane/1.dcm", IMPORTED, damaged),
        entry("Doe^Jane/2.dcm", QUARANTINED, damaged),
        entry("3.png", IMPORTED, kind="images"),
    )
    with open_journal(tmp_path) as kept:
        notes = [Unlisted(f"Doe^Jane/{number}.txt", 0, SKIPPED, "is no dicom file") for number in range(7)]
        kept.put_unlisted("dicom", "/mnt/Doe^Jane", notes)
        kept.commit()
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
        during = {file.stat().st_mode & 0o777 for file in (tmp_path / IMPORTS).iterdir()}
    assert during == {0o600}
    modes = {file.name: file.stat().st_mode & 0o777 for file in [*(tmp_path / "state").rglob("*"), tmp_path / "state"]}
    assert modes == {"state": 0o700, "imports": 0o700, "lock": 0o600, "scans.sqlite": 0o600}


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    write(tmp_path, entry("1.dcm", IMPORTED))
    file = tmp_path / JOURNAL
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"SQLite format 3" + whole[100:], b"x" * 5000):
        file.write_bytes(broken)
        with pytest.raises(SiteError, match="must be a journal that can be used"):
            read_journal(tmp_path)
        with pytest.raises(SiteError, match="must be a journal that can be used"), open_journal(tmp_path):
            pass
        assert file.read_bytes() == broken


@given(st.lists(left_outs, max_size=6))
def test_reasons_are_counted_whatever_their_order(left_out: list[LeftOut]) -> None:
    found = counted(left_out)
    assert sum(item.count for item in found) == sum(item.count for item in left_out)
    assert counted(left_out[::-1]) == counted(found) == found
    assert all(len(item.reason) <= 200 and "\n" not in item.reason for item in found)


def test_an_outcome_is_the_best_that_can_be_said() -> None:
    skipped, quarantined = LeftOut(SKIPPED, "x"), LeftOut(QUARANTINED, "y")
    assert outcome_of(1, [quarantined]) == IMPORTED
    assert outcome_of(0, [skipped, quarantined]) == QUARANTINED
    assert outcome_of(0, [skipped]) == outcome_of(0, []) == SKIPPED


def test_sources_of_two_kinds_or_exports_are_two() -> None:
    ids = {source_id(kind, export, name) for kind in "ab" for export in ("x", "y") for name in ("1", "2")}
    assert len(ids) == 8
    assert source_id("a", "b", "cd") != source_id("a", "bc", "d")


def test_entries_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    one = entry("1.dcm", QUARANTINED, LeftOut(QUARANTINED, "is damaged", 2))
    write(tmp_path, one)
    with database(tmp_path / JOURNAL, "") as rows:
        rows.execute("UPDATE sources SET left_out = ?", ('[["quarantined", "is damaged", 7]]',))
        rows.commit()
    with open_journal(tmp_path) as kept:
        assert kept.entries([one.id])[one.id].left_out == (LeftOut(QUARANTINED, "is damaged", 7),)
