"""How do the rows of a hospital's CSV file become records? By a mapping file (``client.ingest.mapping``)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import numpy as np
import pandas as pd

from client.ingest.delimited import ROW, read_columns
from client.ingest.export import BIRTH, OBSERVED_FROM, QUARANTINED, RECORDS, SKIPPED, LeftOut
from client.ingest.mapping import Column, Label, Long, TableMapping, needed
from client.ingest.outcomes import LabelRows
from client.ingest.times import at_the_latest, births, parse, times_of
from client.ingest.vocabulary import normal_code

KIND = "csv"
_FROM_THE_START = (BIRTH, OBSERVED_FROM)  # a day of these counts from its first moment, any other from its last
Yielded = pd.DataFrame | LeftOut | LabelRows


def read_table(
    file: Path, mapping: TableMapping, time_zone: str = "UTC", chunk_rows: int = 50_000
) -> Iterator[Yielded]:
    """The records and labels of a CSV file, for ``client.ingest.records.import_records``.

    Args:
        time_zone: the site's; times with a zone of their own are restated in it.

    Raises:
        ExportError: not a CSV file of the columns that the mapping names.
    """
    for chunk in read_columns(
        file, needed(mapping), delimiter=mapping.delimiter, encoding=mapping.encoding, chunk_rows=chunk_rows
    ):
        if isinstance(chunk, LeftOut):
            yield chunk
            continue
        rows = _where(chunk, mapping)
        if len(rows):
            yield from _convert(rows, mapping, time_zone)


def _where(frame: pd.DataFrame, mapping: TableMapping) -> pd.DataFrame:
    for name, values in mapping.where.items():
        frame = frame[frame[name].isin(values)]
    return frame.reset_index(drop=True)


def _convert(rows: pd.DataFrame, mapping: TableMapping, zone: str) -> Iterator[Yielded]:
    rows = rows.assign(patient=_patients(rows, mapping))
    stated = times_of(rows, mapping.time, zone) if mapping.time else _never(rows)
    time = stated - pd.Timedelta(hours=mapping.hours_before) if mapping.hours_before else at_the_latest(stated)
    for name, column in mapping.columns.items():
        own = at_the_latest(times_of(rows, column.time, zone)) if column.time else time
        yield from _column(rows, name, column, _never(rows) if column.static else own, mapping.decimal)
    for name, event in mapping.dates.items():
        there = rows[rows[name] != ""]
        when = parse(there[name], event.format, event.replace, zone)
        yield _records(there, when if event.code in _FROM_THE_START else at_the_latest(when), event.code)
    if mapping.age:
        ages, wrong = _numbers(rows[mapping.age.column], mapping.decimal, mapping.age.column)
        yield from wrong
        known = ages.notna()
        yield _records(rows[known], births(stated[known], ages[known]), BIRTH)
    if mapping.long:
        yield from _long(rows, mapping.long, time, mapping.decimal)
    for task, label in mapping.labels.items():
        yield from _labels(rows, task, label, times_of(rows, label.time, zone) if label.time else stated)


def _patients(rows: pd.DataFrame, mapping: TableMapping) -> pd.Series:
    if not mapping.patient:
        return rows[ROW].astype("str")
    parts = [rows[name] for name in mapping.patient]
    blank = np.logical_or.reduce([part == "" for part in parts])
    return reduce(lambda one, other: one + "\x1f" + other, parts).mask(blank, "")


def _column(
    rows: pd.DataFrame, name: str, column: Column, time: pd.Series, decimal: str
) -> Iterator[pd.DataFrame | LeftOut]:
    text = rows[name]
    there = text != ""
    if column.code:
        numbers, wrong = _numbers(text, decimal, name)
        yield from wrong
        known = numbers.notna()
        unit = rows.loc[known, column.unit_column] if column.unit_column else column.unit
        yield _records(rows[known], time[known], column.code, numbers[known], unit)
    elif column.prefix:
        yield _records(rows[there], time[there], f"{column.prefix}//" + text[there].str.upper())
    else:
        codes = text.str.casefold().map({value.strip().casefold(): code for value, code in column.values.items()})
        unknown = int((there & codes.isna()).sum())
        if unknown:
            yield LeftOut(QUARANTINED, f"column {name}: a value that the mapping does not name", unknown)
        said = codes.fillna("") != ""
        yield _records(rows[said], time[said], codes[said])


def _long(rows: pd.DataFrame, long: Long, time: pd.Series, decimal: str) -> Iterator[pd.DataFrame | LeftOut]:
    code = rows[long.code]
    if long.vocabulary or long.vocabulary_column:
        vocabulary = rows[long.vocabulary_column] if long.vocabulary_column else long.vocabulary
        code = vocabulary + "//" + code
    there = rows[long.code] != ""
    if not there.all():
        yield LeftOut(QUARANTINED, "a row without a code", int((~there).sum()))
    rows, time, code = rows[there], time[there], code[there]
    if not long.value:
        yield _records(rows, time, code)
        return
    text = rows[long.value]
    answered = code.map({one: normal_code(one) in long.answers for one in code.unique()}).astype(bool) & (text != "")
    code = code.mask(answered, code + "//" + text)
    numbers, wrong = _numbers(text.mask(answered, ""), decimal, long.value)
    yield from wrong
    keep = numbers.notna() | answered | (text == "")
    unit = rows.loc[keep, long.unit] if long.unit else long.constant_unit
    yield _records(rows[keep], time[keep], code[keep], numbers[keep], unit)


def _labels(rows: pd.DataFrame, task: str, label: Label, time: pd.Series) -> Iterator[Yielded]:
    outcomes = rows[label.column].str.casefold()
    values = {value.strip().casefold(): outcome for value, outcome in label.values.items()}
    known = outcomes.isin(list(values))
    if not known.all():
        yield LeftOut(SKIPPED, f"a row without a label of {task}", int((~known).sum()))
    table = {
        "patient": rows.loc[known, "patient"],
        "prediction_time": time[known],
        "boolean_value": outcomes[known].map(values).astype(bool),
    }
    yield LabelRows(task, pd.DataFrame(table), label.horizon_days)


def _numbers(text: pd.Series, decimal: str, name: str) -> tuple[pd.Series, list[LeftOut]]:
    """The column as floats, NaN where it is blank or holds none; the latter are counted."""
    plain = text.str.replace(decimal, ".", regex=False) if decimal != "." else text
    numbers = pd.to_numeric(plain.where(plain != ""), errors="coerce").astype(np.float64)
    wrong = int((numbers.isna() & (text != "")).sum())
    return numbers, [LeftOut(QUARANTINED, f"column {name}: a value that is not a number", wrong)] if wrong else []


def _records(
    rows: pd.DataFrame,
    time: pd.Series,
    code: pd.Series | str,
    value: pd.Series | float = float("nan"),
    unit: pd.Series | str = "",
) -> pd.DataFrame:
    table = pd.DataFrame({"patient": rows["patient"], "time": time}, index=rows.index)
    return table.assign(code=code, value=value, unit=unit)[list(RECORDS)]


def _never(rows: pd.DataFrame) -> pd.Series:
    return pd.Series(pd.NaT, index=rows.index, dtype="datetime64[us]")
