"""What do the rows of MEASUREMENT, CONDITION_OCCURRENCE and OBSERVATION say?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from client.ingest.export import QUARANTINED, SKIPPED
from client.ingest.fhir.codes import SMOKING, SMOKING_ANSWERS
from client.ingest.omop.concepts import Concepts, as_ids, codes_of, looked_up
from client.ingest.omop.people import Reasons, at_the_latest, drop, first_known, records

_EQUALS = "4172703"  # the concept of the operator =
# Per table: what its columns begin with, and how the column of its date is called.
CODED = {
    "measurement": ("measurement", "measurement_date"),
    "condition_occurrence": ("condition", "condition_start_date"),
    "observation": ("observation", "observation_date"),
}
_CONCEPTS = ("value_as_concept_id", "unit_concept_id")
_VALUES = (*_CONCEPTS, "operator_concept_id", "value_as_number", "value_as_string", "unit_source_value")


def columns_of(table: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of a table that must be there, and those that help."""
    prefix, date = CODED[table]
    useful = (f"{prefix}_source_concept_id", f"{date}time", *(() if table == "condition_occurrence" else _VALUES))
    return ("person_id", f"{prefix}_concept_id", date), useful


def concept_columns(table: str) -> tuple[str, ...]:
    """The columns of a table whose ids are looked up in CONCEPT."""
    prefix, _ = CODED[table]
    own = (f"{prefix}_concept_id", f"{prefix}_source_concept_id")
    return own if table == "condition_occurrence" else (*own, *_CONCEPTS)


def events_of(table: str, rows: pd.DataFrame, concepts: Concepts, left: Reasons) -> pd.DataFrame:
    """Rows of ``RECORDS`` of a chunk; whatever gives none is counted in ``left``.

    Args:
        rows: the columns of ``columns_of`` as text, and ``patient``.
    """
    prefix, date = CODED[table]
    code = codes_of(rows[f"{prefix}_concept_id"], rows[f"{prefix}_source_concept_id"], concepts)
    rows = rows.assign(code=code, time=first_known(rows[f"{date}time"], rows[date]))
    rows = drop(rows, rows["code"] == "", left, SKIPPED, f"table {table}: without a concept (concept 0)")
    rows = drop(rows, rows["time"].isna(), left, QUARANTINED, f"table {table}: no date that is one")
    if table != "condition_occurrence":
        rows = _with_values(table, rows, concepts, left)
    frame = records(rows, rows["code"], at_the_latest(rows["time"]))
    return frame if table == "condition_occurrence" else frame.assign(value=rows["value"], unit=rows["unit"])


def _with_values(table: str, rows: pd.DataFrame, concepts: Concepts, left: Reasons) -> pd.DataFrame:
    """Rows with a ``value`` and a ``unit``: a number, a smoking status, or a finding that says all by being there."""
    operator = as_ids(rows["operator_concept_id"])
    rows = drop(
        rows, ~operator.isin(["", _EQUALS]), left, SKIPPED, f"table {table}: a value with an operator, such as <"
    )
    number = pd.to_numeric(rows["value_as_number"], errors="coerce").astype(np.float64)
    rows = rows.assign(value=number, unit=_units(rows, concepts))
    wrong = (rows["value_as_number"] != "") & ~np.isfinite(rows["value"])
    rows = drop(rows, wrong, left, QUARANTINED, f"table {table}: a value that is no number")
    answer = as_ids(rows["value_as_concept_id"])
    status = looked_up(looked_up(answer, concepts.codes), SMOKING_ANSWERS)
    is_answered = (status != "") & (rows["code"] == SMOKING) & rows["value"].isna()
    rows = rows.assign(code=rows["code"].mask(is_answered, status), is_answered=is_answered)
    if table == "measurement":
        return _needing_numbers(rows, rows["value"].isna(), left, f"table {table}: without a number")
    answered = (answer != "") | (rows["value_as_string"] != "")
    unread = answered & rows["value"].isna()
    rows = _needing_numbers(rows, unread, left, f"table {table}: an answer that is not read")
    unsaid = rows["value"].isna() & rows["code"].str.startswith("LOINC//")  # a question, without its answer
    return _needing_numbers(rows, unsaid, left, f"table {table}: without a value")


def _needing_numbers(rows: pd.DataFrame, wrong: pd.Series, left: Reasons, reason: str) -> pd.DataFrame:
    return drop(rows, wrong & ~rows["is_answered"], left, SKIPPED, reason)


def _units(rows: pd.DataFrame, concepts: Concepts) -> pd.Series:
    """The unit that the concept stands for, else the one that the source wrote."""
    units = looked_up(as_ids(rows["unit_concept_id"]), concepts.units)
    return units.where(units != "", rows["unit_source_value"])
