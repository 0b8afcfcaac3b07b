"""How do tens of millions of events get sorted, and several imports become one table, in little memory?

Pseudonyms are evenly spread, so patients are dealt into ``BUCKETS`` ranges of numbers; each range is sorted by itself,
and one after the other they are in order. A part is a parquet file of one import with one row group a range.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from client.ingest.events import PART, groups_of
from client.ingest.export import BIRTH, QUARANTINED, SKIPPED, Why
from client.ingest.units import Measure, Units, conversion
from shared.site_folder import EVENTS

BUCKETS = 64
_SHIFT = 63 - BUCKETS.bit_length() + 1  # pseudonyms have 63 bits
_ORDER = ["subject_id", "time", "code", "numeric_value", "unit"]  # all columns, so that equal rows are neighbours
_ROWS_AT_ONCE = 500_000
_NOTES = b"fedretina"
_APART = pd.Timedelta(days=366)  # an age tells a birth to a year
HEIGHT, WEIGHT, BMI = "LOINC//8302-2", "LOINC//29463-7", "LOINC//39156-5"

DERIVED = "derived"
THERE_ALREADY, FURTHER_BIRTH = "a row that is there already", "a further birth of one patient"

Finish = Callable[[pd.DataFrame], pd.DataFrame]


def deal(chunks: Iterable[pd.DataFrame], folder: Path) -> dict[int, int]:
    """Write chunks of ``PART`` into one file a range in ``folder``; how many rows each range has."""
    writers: dict[int, Any] = {}
    rows: Counter[int] = Counter()
    with ExitStack() as stack:
        for chunk in chunks:
            for bucket, piece in _by_bucket(chunk):
                if bucket not in writers:
                    writers[bucket] = stack.enter_context(pa.ipc.new_stream(folder / f"{bucket}.arrow", PART))
                writers[bucket].write_table(pa.Table.from_pandas(piece, schema=PART, preserve_index=False))
                rows[bucket] += len(piece)
    return dict(rows)


def _by_bucket(frame: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    buckets = frame["subject_id"].to_numpy() >> _SHIFT
    for bucket in np.unique(buckets).tolist():
        yield bucket, frame[buckets == bucket]


def _at_once(rows: Mapping[int, int]) -> Iterator[list[int]]:
    """Ranges to be handled together, in order: many small ones, or one large one."""
    group: list[int] = []
    for bucket in sorted(rows):
        if group and sum(rows[one] for one in group) + rows[bucket] > _ROWS_AT_ONCE:
            yield group
            group = []
        group.append(bucket)
    if group:
        yield group


def write_part(file: Path, folder: Path, rows: Mapping[int, int], finish: Finish, notes: Callable[[], Any]) -> None:
    """A part of what was dealt.

    Args:
        rows: as ``deal`` returned them.
        finish: makes the rows of some ranges final, as far as other imports have no say in it, and in order.
        notes: asked at the end; plain data, kept with the part.
    """
    kept = []
    with pq.ParquetWriter(file, PART) as writer:
        for group in _at_once(rows):
            frame = finish(pd.concat([_read_stream(folder / f"{bucket}.arrow") for bucket in group], ignore_index=True))
            for bucket, piece in _by_bucket(frame):
                kept.append(bucket)
                writer.write_table(_table(piece, PART), row_group_size=len(piece))
        content = json.dumps({"buckets": kept, **notes()})
        writer.add_key_value_metadata({_NOTES: content.encode()})


def _read_stream(file: Path) -> pd.DataFrame:
    with pa.ipc.open_stream(file) as stream:
        frame: pd.DataFrame = stream.read_pandas()
    return frame


def read_notes(part: Path) -> dict[str, Any]:
    """What was kept with a part."""
    notes: dict[str, Any] = json.loads(pq.read_metadata(part).metadata[_NOTES])
    return notes


def join(parts: Iterable[Path], file: Path, finish: Finish) -> None:
    """Write the union of the parts as ``events.parquet``: columns of ``EVENTS``, in order."""
    with pq.ParquetWriter(file, EVENTS) as writer:
        for frame in _ranges(list(parts)):
            writer.write_table(_table(finish(frame), EVENTS), row_group_size=max(1, len(frame)))


def _ranges(parts: list[Path]) -> Iterator[pd.DataFrame]:
    """The rows of all parts, some ranges at a time."""
    rows: Counter[int] = Counter()
    with ExitStack() as stack:
        files = []
        for part in parts:
            file = stack.enter_context(pq.ParquetFile(part))
            places = {bucket: place for place, bucket in enumerate(read_notes(part)["buckets"])}
            rows.update({bucket: file.metadata.row_group(place).num_rows for bucket, place in places.items()})
            files.append((file, places))
        for group in _at_once(rows):
            found = [(file, [places[one] for one in group if one in places]) for file, places in files]
            yield pa.concat_tables([file.read_row_groups(places) for file, places in found if places]).to_pandas()


def _table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    columns = [
        pa.array(frame[field.name], type=field.type, from_pandas=True)
        if field.name in frame
        else pa.nulls(len(frame), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def in_order(frame: pd.DataFrame, counts: Counter[Why]) -> pd.DataFrame:
    """By patient and time, what has no time first; of equal rows one, and one birth a patient."""
    frame = frame.sort_values(_ORDER, na_position="first", kind="stable", ignore_index=True)
    twice = frame.duplicated()
    if twice.any():
        counts[Why(SKIPPED, THERE_ALREADY)] += int(twice.sum())
        frame = frame[~twice]
    return one_birth(frame, counts).reset_index(drop=True)


def one_birth(frame: pd.DataFrame, counts: Counter[Why]) -> pd.DataFrame:
    """The earliest birth of each patient; none where two are more than a year apart.

    An age at a visit tells the birth to a year, so that such births differ from visit to visit.
    """
    births = frame.loc[frame["code"] == BIRTH, ["subject_id", "time"]]
    further = births[births.duplicated("subject_id")]
    if further.empty:
        return frame
    spread = births.groupby("subject_id")["time"].agg(lambda times: times.max() - times.min())
    wrong = births.index[births["subject_id"].isin(spread.index[spread > _APART])]
    counts[Why(QUARANTINED, "births of one patient more than a year apart")] += len(wrong)
    counts[Why(SKIPPED, FURTHER_BIRTH)] += len(further.index.difference(wrong))
    return frame.drop(further.index.union(wrong))


def with_body_mass_index(frame: pd.DataFrame, measure: Measure, counts: Counter[Why]) -> pd.DataFrame:
    """Add kg/m2 where height (cm) and weight (kg) were taken on one day and no index was; known when the later one was.

    Of several on a day, the last ones; an index out of the range of ``measure`` is none.
    """
    if not (frame["code"] == HEIGHT).any():
        return frame
    frame = frame.assign(day=frame["time"].dt.floor("D"))
    keys = ["subject_id", "day"]
    last = {code: frame[frame["code"] == code].drop_duplicates(keys, keep="last") for code in (HEIGHT, WEIGHT)}
    both = last[HEIGHT].merge(last[WEIGHT], on=keys, suffixes=("", "_weight"))
    there = frame.loc[frame["code"] == BMI, keys].drop_duplicates()
    both = both.merge(there, on=keys, how="left", indicator=True)
    both = both[both["_merge"] == "left_only"]
    frame = frame.drop(columns="day")
    if both.empty:
        return frame
    index = pd.DataFrame(
        {
            "subject_id": both["subject_id"],
            "time": both[["time", "time_weight"]].max(axis=1),
            "code": BMI,
            "numeric_value": (both["numeric_value_weight"] / (both["numeric_value"] / 100) ** 2).astype(np.float32),
            "unit": "kg/m2",
        }
    )
    index = index[index["numeric_value"].between(measure.low, measure.high)]
    counts[Why(DERIVED, BMI)] += len(index)
    return pd.concat([frame, index.astype(frame.dtypes.to_dict())], ignore_index=True)


def usual_units(counted: Iterable[Mapping[str, Mapping[str, int]]], wanted: Mapping[str, str]) -> dict[str, str]:
    """The unit of each measured code over all imports: the one that is wanted, else the most frequent.

    Args:
        counted: for each import, rows by code and unit.
        wanted: units by code.
    """
    totals: dict[str, Counter[str]] = {}
    for counts in counted:
        for code, units in counts.items():
            totals.setdefault(code, Counter()).update(units)
    return {code: wanted.get(code) or _most_frequent(totals[code]) for code in sorted(totals)}


def _most_frequent(units: Mapping[str, int]) -> str:
    return min(units, key=lambda unit: (-units[unit], unit))


def in_usual_units(frame: pd.DataFrame, usual: Mapping[str, str], units: Units, counts: Counter[Why]) -> pd.DataFrame:
    """Every value in the one unit of its code; a value that cannot be converted is left out."""
    want = frame["code"].map(usual)
    other = frame.index[(frame["unit"] != "") & (frame["unit"] != want)]
    if other.empty:
        return frame
    lost: list[int] = []
    for (code, have), rows in groups_of(frame.loc[other, ["code", "unit"]]):
        linear = conversion(units, have, usual[code], (code,))
        if linear is None:
            lost += rows.tolist()
        else:
            frame.loc[rows, "numeric_value"] = frame.loc[rows, "numeric_value"] * linear.factor + linear.offset
            frame.loc[rows, "unit"] = usual[code]
    counts[Why(QUARANTINED, "a value in another unit than most of its code")] += len(lost)
    return frame.drop(index=lost)
