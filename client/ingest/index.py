"""What is in the imaging index? One row a scan that was imported, with its pair; made anew from the journal's table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from client.ingest.journal import JOURNAL, Journal
from client.ingest.pairing import Candidate, pair
from shared.errors import SiteError
from shared.files import replacing
from shared.site_folder import IMAGES, OCT

INDEX = "imaging/index.parquet"
_AT_ONCE = 2048  # rows in memory
_CANDIDATES = """
SELECT image_id, subject_id, eye, device, modality, acquired_us, partner, is_central,
    EXISTS (SELECT 1 FROM scans AS other WHERE other.partner = scans.partner AND other.modality = ?), pair_id
FROM scans ORDER BY subject_id
"""
_INDEXED = "SELECT *, acquired_us AS acquired_at, 0 AS frame FROM scans ORDER BY image_id"


def check_folder(folder: Path) -> None:
    """Raise ``SiteError`` unless scans can be imported into this folder."""
    if not (folder / "dataset.yaml").exists():
        remedy = f"Make it first: fedretina site init {folder}."
        raise SiteError(str(folder), "must be a site folder", remedy=remedy)
    if (folder / INDEX).exists() and not (folder / JOURNAL).exists():
        remedy = "Import into a new folder, or restore the state/ folder that belongs to this one."
        raise SiteError(str(folder / INDEX), "must have been made by imports into this folder", remedy=remedy)


def find_pairs(journal: Journal, within_s: float) -> None:
    """Say in the journal which scan belongs to which, patient by patient."""
    rows = journal.rows.execute(_CANDIDATES, (OCT,))
    candidates = ((_candidate(row[:-1]), row[-1]) for row in rows)
    changes: list[tuple[str | None, str]] = []
    for _, scans in groupby(candidates, lambda row: row[0].subject_id):
        before = dict(scans)
        pairs = pair(before, within_s)
        found = {**{oct_id: oct_id for oct_id in pairs}, **{ir_id: oct_id for oct_id, ir_id in pairs.items()}}
        changes += [
            (found.get(scan.image_id), scan.image_id)
            for scan, pair_id in before.items()
            if found.get(scan.image_id) != pair_id
        ]
        if len(changes) > _AT_ONCE:
            _change(journal, changes)
            changes = []
    _change(journal, changes)


def _candidate(row: tuple[str, int, str, str, str, int, str | None, int, int]) -> Candidate:
    image_id, subject_id, eye, device, modality, acquired_us, partner, is_central, is_named = row
    told = image_id, subject_id, eye, device, modality, acquired_us, partner
    return Candidate(*told, is_central=bool(is_central), is_named=bool(is_named))


def _change(journal: Journal, changes: list[tuple[str | None, str]]) -> None:
    journal.rows.executemany("UPDATE scans SET pair_id = ? WHERE image_id = ?", changes)


def write(folder: Path, journal: Journal) -> None:
    """Replace the index, where it is not the same already."""
    for draft in (folder / INDEX).parent.glob(f".{Path(INDEX).name}-*"):
        draft.unlink()  # of an import that was killed
    with replacing(folder / INDEX, unless_equal=True) as draft, pq.ParquetWriter(draft, IMAGES) as index:
        rows = journal.rows.execute(_INDEXED)
        names = [column[0] for column in rows.description]
        while batch := rows.fetchmany(_AT_ONCE):
            index.write_batch(_batch(dict(zip(names, zip(*batch, strict=True), strict=True))))


def _batch(columns: dict[str, Sequence[object]]) -> pa.RecordBatch:
    spacing = zip(columns.pop("spacing_row"), columns.pop("spacing_column"), strict=True)
    columns["spacing"] = tuple(None if None in sizes else list(sizes) for sizes in spacing)
    return pa.RecordBatch.from_arrays([pa.array(columns[column.name], column.type) for column in IMAGES], schema=IMAGES)


def count_pairs(journal: Journal) -> tuple[int, dict[str, int]]:
    """Number of pairs, and of scans without a partner by modality; of a volume the central one counts."""
    (paired,) = journal.rows.execute("SELECT count(pair_id) FROM scans").fetchone()
    alone = "SELECT modality, count(*) FROM scans WHERE pair_id IS NULL AND is_central GROUP BY modality"
    return paired // 2, dict(journal.rows.execute(alone).fetchall())
