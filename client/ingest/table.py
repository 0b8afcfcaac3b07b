"""How do the rows of a hospital's CSV file become records? By a mapping file (``client.ingest.mapping``)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import numpy as np
import pandas as pd

from client.ingest.delimited import ROW, read_columns
from client.ingest.export import BIRTH, OBSERVED_FROM, QUARANTINED, RECORDS, SKIPPED, LeftOut
from client.ingest.mapping import Column, Label, Long, TableMapping, needed
from client.ingest.outcomes import LabelRows
from client.ingest.progress import Tell
from client.ingest.times import Moments, births, parse, times_of
from client.ingest.vocabulary import normal_code

KIND = "csv"
_NUMBERS = {  # by the decimal sign; no thousands separator, as 1.200 is a number in either notation, and another one
    sign: re.compile(rf"[+-]?(?:\d+(?:[{sign}]\d*)?|[{sign}]\d+)(?:[eE][+-]?\d+)?", re.ASCII) for sign in ".,"
}
Yielded = pd.DataFrame | LeftOut | LabelRows


def read_table(
    file: Path, mapping: TableMapping, time_zone: str = "UTC", chunk_rows: int = 50_000, *, tell: Tell | None = None
) -> Iterator[Yielded]:
    """The records and labels of a CSV file, for ``client.ingest.records.import_records``.

    Args:
        time_zone: the site's; times with a zone of their own are restated in it.
        tell: how many bytes of how many are read.

    Raises:
        ExportError: not a CSV file of the columns that the mapping names.
    """
    how = {"delimiter": mapping.delimiter, "encoding": mapping.encoding}
    chunks = read_columns(file, needed(mapping), **how, chunk_rows=chunk_rows, tell=tell)
    yield from _joined(_read(chunks, mapping, time_zone), chunk_rows)


def _read(chunks: Iterator[pd.DataFrame | LeftOut], mapping: TableMapping, zone: str) -> Iterator[Yielded]:
    for chunk in chunks:
        if isinstance(chunk, LeftOut):
            yield chunk
            continue
        rows = _where(chunk, mapping)
        if len(rows):
            yield from _convert(rows, mapping, zone)


def _joined(items: Iterator[Yielded], rows: int) -> Iterator[Yielded]:
    """Tables of so many rows or more: each costs about as much however small, and every column gives one."""
    tables: list[pd.DataFrame] = []
    count = 0
    for item in items:
        if not isinstance(item, pd.DataFrame):
            yield item
        elif len(item):
            tables.append(item)
            count += len(item)
        if count >= rows:
            yield pd.concat(tables, ignore_index=True)
            tables, count = [], 0
    if tables:
        yield pd.concat(tables, ignore_index=True)


def _where(frame: pd.DataFrame, mapping: TableMapping) -> pd.DataFrame:
    for name, values in mapping.where.items():
        frame = frame[frame[name].isin(values)]
    return frame.reset_index(drop=True)


def _convert(rows: pd.DataFrame, mapping: TableMapping, zone: str) -> Iterator[Yielded]:
    rows = rows.assign(patient=_patients(rows, mapping))
    never = pd.Series(pd.NaT, index=rows.index, dtype="datetime64[us]")
    stated = times_of(rows, mapping.time, zone) if mapping.time else Moments(never, never, never)
    time = stated.first - pd.Timedelta(hours=mapping.hours_before) if mapping.hours_before else stated.last
    for name, column in mapping.columns.items():
        own = times_of(rows, column.time, zone).last if column.time else time
        yield from _column(rows, name, column, never if column.static else own, mapping.decimal)
    for name, event in mapping.dates.items():
        there = rows[name] != ""
        when = parse(rows.loc[there, name], event.format, event.replace, zone)
        moment = {BIRTH: when.middle, OBSERVED_FROM: when.first}.get(event.code, when.last)
        yield _records(rows["patient"][there], moment, event.code)
    if mapping.age:
        ages, wrong = _numbers(rows[mapping.age.column], mapping.decimal, mapping.age.column)
        yield from wrong
        known = ages.notna()
        yield _records(rows["patient"][known], births(stated.middle[known], ages[known]), BIRTH)
    if mapping.long:
        yield from _long(rows, mapping.long, time, mapping.decimal)
    for task, label in mapping.labels.items():
        yield from _labels(rows, task, label, (times_of(rows, label.time, zone) if label.time else stated).first)


def _patients(rows: pd.DataFrame, mapping: TableMapping) -> pd.Series:
    if not mapping.patient:
        return rows[ROW].astype("str")
    parts = [rows[name] for name in mapping.patient]
    blank = np.logical_or.reduce([part == "" for part in parts])
    return reduce(lambda one, other: one + "\x1f" + other, parts).mask(blank, "")


def _column(
    rows: pd.DataFrame, name: str, column: Column, time: pd.Series, decimal: str
) -> Iterator[pd.DataFrame | LeftOut]:
    text, patient = rows[name], rows["patient"]  # never rows of all columns: there may be thousands, each with its turn
    there = text != ""
    if not there.any():  # as most of thousands of columns are
        return
    if column.code:
        numbers, wrong = _numbers(text, decimal, name)
        yield from wrong
        known = numbers.notna()
        unit = rows[column.unit_column][known] if column.unit_column else column.unit
        yield _records(patient[known], time[known], column.code, numbers[known], unit)
    elif column.prefix:
        yield _records(patient[there], time[there], f"{column.prefix}//" + text[there].str.upper())
    else:
        codes = text.str.casefold().map({value.strip().casefold(): code for value, code in column.values.items()})
        unknown = int((there & codes.isna()).sum())
        if unknown:
            yield LeftOut(QUARANTINED, "a value that the mapping does not name", unknown, f"column {name}")
        said = codes.fillna("") != ""
        yield _records(patient[said], time[said], codes[said])


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
        yield _records(rows["patient"], time, code)
        return
    text = rows[long.value]
    answered = code.map({one: normal_code(one) in long.answers for one in code.unique()}).astype(bool) & (text != "")
    code = code.mask(answered, code + "//" + text)
    numbers, wrong = _numbers(text.mask(answered, ""), decimal, long.value)
    yield from wrong
    keep = numbers.notna() | answered | (text == "")
    unit = rows.loc[keep, long.unit] if long.unit else long.constant_unit
    yield _records(rows["patient"][keep], time[keep], code[keep], numbers[keep], unit)


def _labels(rows: pd.DataFrame, task: str, label: Label, time: pd.Series) -> Iterator[Yielded]:
    outcomes = rows[label.column].str.casefold()
    values = {value.strip().casefold(): outcome for value, outcome in label.values.items()}
    known = outcomes.isin(list(values))
    if not known.all():
        yield LeftOut(SKIPPED, "a row without a label", int((~known).sum()), f"task {task}")
    table = {
        "patient": rows.loc[known, "patient"],
        "prediction_time": time[known],
        "boolean_value": outcomes[known].map(values).astype(bool),
    }
    yield LabelRows(task, pd.DataFrame(table), label.horizon_days)


def _numbers(text: pd.Series, decimal: str, name: str) -> tuple[pd.Series, list[LeftOut]]:
    """The column as floats, NaN where it is blank or holds none; the latter are counted."""
    plain = text.where(text.str.fullmatch(_NUMBERS[decimal])).str.replace(decimal, ".", regex=False)
    numbers = pd.to_numeric(plain, errors="coerce").astype(np.float64)
    numbers = numbers.where(np.isfinite(numbers))  # 1e999
    wrong = int((numbers.isna() & (text != "")).sum())
    left_out = LeftOut(QUARANTINED, "a value that is not a number", wrong, f"column {name}")
    return numbers, [left_out] if wrong else []


def _records(
    patient: pd.Series,
    time: pd.Series,
    code: pd.Series | str,
    value: pd.Series | float = float("nan"),
    unit: pd.Series | str = "",
) -> pd.DataFrame:
    return pd.DataFrame(dict(zip(RECORDS, (patient, time, code, value, unit), strict=True)))
