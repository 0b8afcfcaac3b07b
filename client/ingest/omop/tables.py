"""How is a table of a CDM read, a chunk at a time, whether it is CSV or parquet?

Everything comes as text, as it is written: a CSV has no types, and a parquet file of the same table has other types at
every hospital.
"""

from __future__ import annotations

import csv
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from client.ingest.export import ExportError, LeftOut
from client.ingest.omop.csv import read_csv
from client.ingest.omop.files import Part, opened
from client.ingest.progress import Meter

_DAMAGED = (OSError, EOFError, ValueError, csv.Error, pa.ArrowException, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
_UNREADABLE = (*_DAMAGED, RuntimeError, NotImplementedError)  # an encrypted zip, or one of an unknown method


@dataclass(frozen=True)
class Pace:
    """In what steps tables are read: so many rows at a time, and who counts the bytes."""

    rows: int
    meter: Meter


def read_table(
    table: str, parts: Sequence[Part], needed: Sequence[str], useful: Sequence[str], pace: Pace
) -> Iterator[pd.DataFrame | LeftOut]:
    """Some columns of a table as text, "" where there is nothing; a useful column that is not there is "" throughout.

    Raises:
        ExportError: a needed column is not there, or the table cannot be read to its end.
    """
    for part in parts:
        try:
            with opened(part) as file:
                yield from _read_part(table, file, part, (needed, useful), pace)
        except _UNREADABLE:
            # A table that ends early would look like patients to whom nothing happened.
            remedy = "Export it again."
            raise ExportError(f"OMOP export: table {table}", "must be readable to its end", remedy=remedy) from None


def _read_part(
    table: str, file: IO[bytes], part: Part, columns: tuple[Sequence[str], Sequence[str]], pace: Pace
) -> Iterator[pd.DataFrame | LeftOut]:
    choose = partial(_places, table, columns)
    counted = 0
    for texts in _read_parquet(file, choose, pace.rows) if part.is_parquet else read_csv(table, file, choose):
        if isinstance(texts, LeftOut):
            yield texts
            continue
        frame = _frame(texts, [*columns[0], *columns[1]])
        for start in range(0, len(frame), pace.rows):
            yield frame.iloc[start : start + pace.rows].reset_index(drop=True)
        if not part.is_parquet:  # which is read in no order, so that it counts when it is done
            place = file.tell()
            pace.meter.add(place - counted)
            counted = place
    pace.meter.add(part.bytes - counted)


def _read_parquet(
    file: IO[bytes], choose: partial[dict[str, int]], chunk_rows: int
) -> Iterator[dict[str, pa.Array] | LeftOut]:
    parquet = pq.ParquetFile(file)
    header = parquet.schema_arrow.names
    names = {name: header[place] for name, place in choose(header).items()}
    for batch in parquet.iter_batches(batch_size=chunk_rows, columns=list(names.values())):
        # A column of lists has no text and cannot be cast.
        yield {name: batch.column(found).cast(pa.string()).fill_null("") for name, found in names.items()}


def _places(table: str, columns: tuple[Sequence[str], Sequence[str]], header: Sequence[str]) -> dict[str, int]:
    """Where each column is in the header, whatever its case."""
    needed, useful = columns
    lowered = [name.strip().lower() for name in header]
    for name in needed:
        if name not in lowered:
            remedy = "Columns are told apart by commas or tabs, and named in the first line."
            raise ExportError(f"OMOP export: table {table}: column {name}", "must be present", remedy=remedy)
    found = [name for name in (*needed, *useful) if name in lowered]
    for name in found:
        if lowered.count(name) > 1:
            raise ExportError(f"OMOP export: table {table}: column {name}", "must be there once")
    return {name: lowered.index(name) for name in found}


def _frame(texts: dict[str, pa.Array], names: Sequence[str]) -> pd.DataFrame:
    absent = pa.array([""] * len(next(iter(texts.values()), ())), pa.string())
    columns = {name: pc.utf8_trim_whitespace(texts.get(name, absent)) for name in names}
    frame: pd.DataFrame = pa.table(columns).to_pandas()
    return frame.astype("str")
