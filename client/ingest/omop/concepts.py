"""What do the concept ids of a CDM stand for? Codes and units, from the CONCEPT table.

A full vocabulary has millions of concepts, so only those that the export uses are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from client.ingest.export import LeftOut
from client.ingest.fhir.codes import preferred
from client.ingest.omop.files import Part
from client.ingest.omop.tables import Pace, read_table

VOCABULARIES = {
    **dict.fromkeys(("ICD10GM", "CIM10"), "ICD10"),
    "ICD9CM": "ICD9",
}
_COLUMNS = ("concept_id", "vocabulary_id", "concept_code")


@dataclass(frozen=True)
class Concepts:
    """Code (vocabulary//code) and UCUM unit of each concept id that is used and known."""

    codes: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)


def as_ids(column: pd.Series) -> pd.Series:
    """Ids as whole numbers, also where an export made decimals of them because some are blank; "" for none or 0."""
    ids = without_decimals(column)
    return ids.mask(ids == "0", "")


def without_decimals(column: pd.Series) -> pd.Series:
    """Whole numbers as text, without the ``.0`` of an export that made decimals of them."""
    return column.str.replace(r"\.0*$", "", regex=True)


def looked_up(keys: pd.Series, table: Mapping[str, str]) -> pd.Series:
    """What a table has for each key; "" where it has nothing."""
    return pd.Series([table.get(key, "") for key in keys], index=keys.index, dtype="str")


def used_ids(table: str, parts: Sequence[Part], columns: Sequence[str], pace: Pace) -> set[str]:
    """Every concept id in some columns of a table."""
    used: set[str] = set()
    for chunk in read_table(table, parts, columns[:1], columns[1:], pace):
        if not isinstance(chunk, LeftOut):
            for column in columns:
                used.update(as_ids(chunk[column].drop_duplicates()))
    return used


def read_concepts(parts: Sequence[Part], used: set[str], pace: Pace) -> Concepts:
    """The concepts that are used, of the CONCEPT table."""
    codes, units = {}, {}
    for chunk in read_table("concept", parts, _COLUMNS, (), pace):
        if isinstance(chunk, LeftOut):
            continue
        ids = as_ids(chunk["concept_id"])
        for row in chunk.assign(concept_id=ids)[ids.isin(used) & (chunk["concept_code"] != "")].itertuples():
            if row.vocabulary_id == "UCUM":
                units[str(row.concept_id)] = str(row.concept_code)
            else:
                vocabulary = VOCABULARIES.get(str(row.vocabulary_id), str(row.vocabulary_id))
                codes[str(row.concept_id)] = f"{vocabulary}//{row.concept_code}"
    return Concepts(codes, units)


def codes_of(concept: pd.Series, source: pd.Series, concepts: Concepts) -> pd.Series:
    """The code of each row, of its standard concept or its source concept; "" where both are 0.

    A concept that the CONCEPT table does not have becomes ``OMOP//<concept_id>``.
    """
    pairs = pd.DataFrame({"concept": as_ids(concept), "source": as_ids(source)})
    distinct = pairs.drop_duplicates()
    chosen = {
        (first, second): preferred(concepts.codes.get(key, f"OMOP//{key}") for key in (first, second) if key) or ""
        for first, second in zip(distinct["concept"], distinct["source"], strict=True)
    }
    keys = zip(pairs["concept"], pairs["source"], strict=True)
    return pd.Series([chosen[key] for key in keys], index=concept.index, dtype="str")
