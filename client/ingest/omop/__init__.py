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
from client.ingest.omop.files import Found, Part, find_tables
from client.ingest.omop.people import PEOPLE, Reasons, drop
from client.ingest.omop.tables import Pace, read_table
from client.ingest.progress import Meter, Tell
from client.ingest.sources import UNLISTED

TABLES = (*PEOPLE, *CODED, "concept")
_ABSENT = {"concept": "so that codes are OMOP//<concept_id> and units are as the source wrote them"}
_LONGEST_ID = 200


def read_omop(
    export: Path, chunk_rows: int = 200_000, *, use_source_value: bool = False, tell: Tell | None = None
) -> Iterator[pd.DataFrame | LeftOut]:
    """Tables of ``RECORDS`` of at most ``2 * chunk_rows`` rows, and what was left out, with counts.

    Args:
        export: a folder of CSV or parquet files, or a zip of one.
        use_source_value: a patient's id is ``person_source_value``, where that is the number under which the hospital's
            scans know them, and not ``person_id``.
        tell: how many bytes of how many are read.

    Raises:
        ExportError: no CDM, or one of its tables cannot be read to its end. It may come after some tables, which must
            not be kept then: a condition that is not there would look like one that nobody has.
    """
    found = find_tables(export, TABLES)
    tables = found.tables
    if "person" not in tables:
        remedy = "Give the folder or zip of the CDM's tables: person, measurement, condition_occurrence, ..."
        there = next(iter(found.unread.get("person", ())), None)
        raise ExportError("OMOP export: table person", "must be present", value=there, remedy=remedy)
    yield from _not_read(found)
    again = [*(CODED if "concept" in tables else ()), *(("person",) if use_source_value else ())]
    total = sum(part.bytes for table in [*tables, *again] for part in tables.get(table, ()))
    pace = Pace(chunk_rows, Meter(total, tell))
    patients = _source_values(tables["person"], pace) if use_source_value else None
    concepts = _concepts(tables, pace)
    for table, parts in tables.items():
        if table != "concept":
            yield from _events(table, parts, concepts, patients, pace)


def _not_read(found: Found) -> Iterator[LeftOut]:
    """Why files, links and tables are not read."""
    for table in TABLES:
        is_there = table in found.tables
        consequence = f", {_ABSENT[table]}" if table in _ABSENT and not is_there else ""
        reasons = found.unread.get(table) or ({} if is_there else {"not in the export": 1})
        for reason, count in sorted(reasons.items()):
            yield LeftOut(SKIPPED, f"table {table}: {reason}{consequence}", count)
    for reason, count in sorted(found.others.items()):
        yield LeftOut(QUARANTINED if reason == UNLISTED else SKIPPED, reason, count)


def _concepts(tables: Mapping[str, tuple[Part, ...]], pace: Pace) -> Concepts:
    if "concept" not in tables:
        return Concepts()
    used: set[str] = set()
    for table in CODED:
        if table in tables:
            used |= used_ids(table, tables[table], concept_columns(table), pace)
    return read_concepts(tables["concept"], used, pace)


def _source_values(parts: tuple[Part, ...], pace: Pace) -> dict[str, str]:
    """The source value of each person."""
    values: dict[str, str] = {}
    for chunk in read_table("person", parts, ("person_id", "person_source_value"), (), pace):
        if not isinstance(chunk, LeftOut):
            values.update(zip(without_decimals(chunk["person_id"]), chunk["person_source_value"], strict=True))
    return values


def _events(
    table: str, parts: tuple[Part, ...], concepts: Concepts, patients: Mapping[str, str] | None, pace: Pace
) -> Iterator[pd.DataFrame | LeftOut]:
    needed, useful = PEOPLE[table][:2] if table in PEOPLE else columns_of(table)
    left: Reasons = Counter()
    for chunk in read_table(table, parts, needed, useful, pace):
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
