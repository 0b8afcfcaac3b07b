"""What is in the imaging index? One row a scan that was imported, with its pair; made anew from the journal's table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from client.ingest import journal
from client.ingest.pairing import Candidate, pair
from shared.errors import SiteError
from shared.site_folder import IMAGES

INDEX = "imaging/index.parquet"
_CANDIDATE = ("image_id", "subject_id", "eye", "device", "modality", "acquired_at", "partner", "is_central")


@dataclass(frozen=True)
class Tables:
    """The scans of a site.

    Attributes:
        scans: columns of ``journal.SCANS``, by image_id.
        holders: source and SHA-256 of each scan, by image_id.
        broken: sources of which a picture is missing or cut short.
    """

    scans: pa.Table
    holders: Mapping[str, tuple[str, str]]
    broken: frozenset[str] = frozenset()


def check_folder(folder: Path) -> None:
    """Raise ``SiteError`` unless scans can be imported into this folder."""
    if not (folder / "dataset.yaml").exists():
        remedy = f"Make it first: fedretina site init {folder}."
        raise SiteError(str(folder), "must be a site folder", remedy=remedy)
    if (folder / INDEX).exists() and not (folder / journal.SCANS_FILE).exists():
        remedy = "Import into a new folder, or restore the state/ folder that belongs to this one."
        raise SiteError(str(folder / INDEX), "must have been made by imports into this folder", remedy=remedy)


def open_tables(folder: Path) -> Tables:
    """What the journal has, and which of it is not on the disk."""
    scans = journal.read_scans(folder)
    broken = set()
    for path, size, source in zip(*(scans[name].to_pylist() for name in ("path", "bytes", "source")), strict=True):
        try:
            whole = os.stat(folder / "imaging" / "files" / path).st_size == size
        except OSError:
            whole = False
        if not whole:
            broken.add(source)
    return Tables(scans, _holders(scans), frozenset(broken))


def _holders(scans: pa.Table) -> dict[str, tuple[str, str]]:
    columns = [scans[name].to_pylist() for name in ("image_id", "source", "sha256")]
    return {image_id: (source, sha256) for image_id, source, sha256 in zip(*columns, strict=True)}


def merge(tables: Tables, changed: Mapping[str, Mapping[str, object]], reread: set[str]) -> Tables:
    """The tables without the rows of some sources, and with changed rows in the place of those of the same scan."""
    if not changed and not reread:
        return tables
    scans = tables.scans
    gone = pc.or_(
        pc.is_in(scans["source"], pa.array(sorted(reread), pa.string())),
        pc.is_in(scans["image_id"], pa.array(sorted(changed), pa.string())),
    )
    new = pa.Table.from_pylist([dict(row) for row in changed.values()], schema=journal.SCANS)
    scans = pa.concat_tables([scans.filter(pc.invert(gone)), new]).sort_by("image_id").combine_chunks()
    return Tables(scans, _holders(scans), tables.broken)


def write(folder: Path, tables: Tables, within_s: float) -> None:
    """Replace the index, where it is not the same already."""
    pairs = pair(_candidates(tables.scans), within_s)
    named = {**{oct_id: oct_id for oct_id in pairs}, **{ir_id: oct_id for oct_id, ir_id in pairs.items()}}
    pair_ids = pa.array([named.get(image_id) for image_id in tables.scans["image_id"].to_pylist()], pa.string())
    scans = tables.scans.append_column("pair_id", pair_ids).select(IMAGES.names).cast(IMAGES)
    journal.replace_table(folder / INDEX, scans)


def _candidates(scans: pa.Table) -> Iterator[Candidate]:
    table = scans.select(_CANDIDATE).set_column(
        _CANDIDATE.index("acquired_at"), "acquired_us", scans["acquired_at"].cast(pa.int64())
    )
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            yield Candidate(**row)


def count_pairs(folder: Path, tables: Tables) -> tuple[int, dict[str, int]]:
    """Number of pairs, and of scans without a partner by modality; of a volume the central one counts."""
    if not (folder / INDEX).exists():
        return 0, {}
    pair_ids = pq.read_table(folder / INDEX, columns=["pair_id"])["pair_id"].to_pylist()  # in the order of the tables
    columns = (tables.scans[name].to_pylist() for name in ("modality", "is_central"))
    alone = Counter(
        modality
        for pair_id, modality, is_central in zip(pair_ids, *columns, strict=True)
        if pair_id is None and is_central
    )
    return sum(pair_id is not None for pair_id in pair_ids) // 2, dict(alone)
