"""Is the imaging index that of the journal, with pairs found patient by patient?"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.ingest import index
from client.ingest.journal import IMPORTED, Entry, KeptScan, open_journal
from client.ingest.pairing import Candidate, pair
from shared.site_folder import IMAGES, SiteFolder
from tests.client.ingest.test_journal import kept_scan
from tests.client.ingest.test_pairing import visits

ENTRY = Entry("dicom", "/e", "1", (), "", IMPORTED, (), 1)


def kept(scan: Candidate) -> KeptScan:
    told = {name: value for name, value in asdict(scan).items() if name not in ("image_id", "is_named")}
    sizes = {"height": 4, "width": 5, "spacing_row": 0.25, "spacing_column": 0.5}
    return kept_scan(scan.image_id, ENTRY.id, **sizes, **told)


@given(visits(), st.integers(0, 90), st.integers(0, 90))
def test_pairs_of_each_patient_are_those_of_all_patients_together(
    scans: list[Candidate], before_s: int, within_s: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, open_journal(Path(folder)) as journal:
        for scan in scans:
            journal.put_scan(kept(scan))
        index.find_pairs(journal, before_s)
        index.find_pairs(journal, within_s)
        index.write(Path(folder), journal)
        table = pq.read_table(Path(folder) / index.INDEX).to_pydict()
        pairs = pair(scans, within_s)
        expected = {**{name: name for name in pairs}, **{other: name for name, other in pairs.items()}}
        assert dict(zip(table["image_id"], table["pair_id"], strict=True)) == {
            scan.image_id: expected.get(scan.image_id) for scan in scans
        }
        alone = [scan.modality for scan in scans if scan.is_central and scan.image_id not in expected]
        assert index.count_pairs(journal) == (len(pairs), {name: alone.count(name) for name in set(alone)})


def test_each_column_is_what_the_journal_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_AT_ONCE", 2)  # more scans than are in memory at once
    taken = datetime(1969, 12, 31, 23, 59, 59, 1)
    one = Candidate(
        "b1", 3, "L", "A", "IR", (taken - datetime(1970, 1, 1)) // timedelta(microseconds=1), None, True, False
    )
    scans = [replace(one, image_id=f"{letter}1", subject_id=number + 1) for number, letter in enumerate("edcba")]
    with open_journal(tmp_path) as journal:
        for scan in scans:
            journal.put_scan(kept(scan))
        journal.put_scan(kept(scans[0])._replace(spacing_row=None, quality=0.5))
        index.write(tmp_path, journal)
    table = pq.read_table(tmp_path / index.INDEX)
    assert table.schema.equals(IMAGES)
    assert table["image_id"].to_pylist() == ["a1", "b1", "c1", "d1", "e1"]
    assert table["subject_id"].to_pylist() == [5, 4, 3, 2, 1]
    assert table["spacing"].to_pylist() == [[0.25, 0.5]] * 4 + [None]
    assert table["quality"].to_pylist() == [None] * 4 + [0.5]
    row = {name: values[0] for name, values in table.slice(1, 1).to_pydict().items()}
    assert row == {
        "image_id": "b1",
        "subject_id": 4,
        "eye": "L",
        "acquired_at": taken,
        "modality": "IR",
        "device": "A",
        "pair_id": None,
        "path": "b1/b1.png",
        "frame": 0,
        "height": 4,
        "width": 5,
        "spacing": [0.25, 0.5],
        "sha256": "ab",
        "quality": None,
    }


def test_an_index_without_scans_keeps_the_contract_and_an_equal_one_is_left(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        index.write(tmp_path, journal)
        file = tmp_path / index.INDEX
        before = file.stat()
        (file.parent / ".index.parquet-x").write_bytes(b"of an import that was killed")
        index.write(tmp_path, journal)
    assert SiteFolder(tmp_path).images().empty
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(file.parent.iterdir()) == [file]
