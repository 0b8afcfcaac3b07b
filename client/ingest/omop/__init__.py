"""How does an OMOP CDM (5.3 or 5.4) become events?

Tables, columns and conventions: ohdsi.github.io/CommonDataModel/cdm54.html. The tables are read twice, first for the
concepts that they use, and a chunk of one is in memory at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from client.ingest.export import QUARANTINED, SKIPPED, ExportError, LeftOut
from client.ingest.omop.concepts import Concepts, looked_up, read_concepts, used_ids, without_decimals
from client.ingest.omop.events import CODED, columns_of, concept_columns, events_of
from client.ingest.omop.files import Part, find_tables
from client.ingest.omop.people import PEOPLE, Reasons, drop
from client.ingest.omop.tables import read_table

TABLES = (*PEOPLE, *CODED, "concept")
_ABSENT = {"concept": "so that codes are OMOP//<concept_id> and units are as the source wrote them"}
_LONGEST_ID = 200


def read_omop(
    export: Path, chunk_rows: int = 200_000, *, use_source_value: bool = False
) -> Iterator[pd.DataFrame | LeftOut]:
    """Tables of ``RECORDS`` of at most ``2 * chunk_rows`` rows, and what was left out, with counts.

    Args:
        export: a folder of CSV or parquet files, or a zip of one.
        use_source_value: a patient's id is ``person_source_value``, where that is the number under which the hospital's
            scans know them, and not ``person_id``.

    Raises:
        ExportError: no CDM, or one of its tables cannot be read to its end. It may come after some tables, which must
            not be kept then: a condition that is not there would look like one that nobody has.
    """
    tables = find_tables(export, TABLES)
    if "person" not in tables:
        remedy = "Give the folder or zip of the CDM's tables: person, measurement, condition_occurrence, ..."
        raise ExportError("OMOP export: table person", "must be present", remedy=remedy)
    for table in TABLES:
        if table not in tables:
            consequence = f", {_ABSENT[table]}" if table in _ABSENT else ""
            yield LeftOut(SKIPPED, f"table {table}: not in the export{consequence}")
    patients = _source_values(tables["person"], chunk_rows) if use_source_value else None
    concepts = _concepts(tables, chunk_rows)
    for table, parts in tables.items():
        if table != "concept":
            yield from _events(table, parts, concepts, patients, chunk_rows)


def _concepts(tables: Mapping[str, tuple[Part, ...]], chunk_rows: int) -> Concepts:
    if "concept" not in tables:
        return Concepts()
    used: set[str] = set()
    for table in CODED:
        if table in tables:
            used |= used_ids(table, tables[table], concept_columns(table), chunk_rows)
    return read_concepts(tables["concept"], used, chunk_rows)


def _source_values(parts: tuple[Part, ...], chunk_rows: int) -> dict[str, str]:
    """The source value of each person."""
    values: dict[str, str] = {}
    for chunk in read_table("person", parts, ("person_id", "person_source_value"), (), chunk_rows):
        if not isinstance(chunk, LeftOut):
            values.update(zip(without_decimals(chunk["person_id"]), chunk["person_source_value"], strict=True))
    return values


def _events(
    table: str, parts: tuple[Part, ...], concepts: Concepts, patients: Mapping[str, str] | None, chunk_rows: int
) -> Iterator[pd.DataFrame | LeftOut]:
    needed, useful = PEOPLE[table][:2] if table in PEOPLE else columns_of(table)
    left: Reasons = Counter()
    for chunk in read_table(table, parts, needed, useful, chunk_rows):
        if isinstance(chunk, LeftOut):
            yield chunk
            continue
        rows = _known(table, chunk, patients, left)
        frame = PEOPLE[table][2](rows, left) if table in PEOPLE else events_of(table, rows, concepts, left)
        if len(frame):
            yield frame.reset_index(drop=True)
    yield from (LeftOut(outcome, reason, count) for (outcome, reason), count in sorted(left.items()) if count)


def _known(table: str, rows: pd.DataFrame, patients: Mapping[str, str] | None, left: Reasons) -> pd.DataFrame:
    """The rows whose ``patient`` can be told."""
    person = without_decimals(rows["person_id"])
    named = rows.assign(patient=person if patients is None else looked_up(person, patients))
    wrong = ~named["patient"].str.len().between(1, _LONGEST_ID)
    wrong |= named["patient"].str.contains("[\ufffd\x00-\x1f\x7f]", regex=True)
    return drop(named, wrong, left, QUARANTINED, f"table {table}: no patient that can be told")
