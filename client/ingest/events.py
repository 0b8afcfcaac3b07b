"""What becomes of one chunk of records? Codes mapped, values converted, ranges checked, patients given pseudonyms.

What cannot be understood is left out and counted, never guessed: a value without a unit, a date that is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from client.ingest.coverage import is_readable, vocabulary_of
from client.ingest.export import QUARANTINED, RECORDS, SKIPPED, ExportError, Why
from client.ingest.units import Linear, Measure, Units, conversion, normal_unit
from client.ingest.vocabulary import Vocabulary, is_code, normal_code, targets_of
from shared.config import ONSET
from shared.site_folder import EVENTS

# An import keeps the unit of each value beside it: which one holds for a code is decided when imports are joined.
PART = pa.schema([*(column for column in EVENTS if column.name != "text_value"), ("unit", pa.string())])
EARLIEST = pd.Timestamp(1850, 1, 1)
_STATIC = ("SEX//", "RACE//", "ETHNICITY//")  # may lack a time; anything else would count as known from birth on
_OUTSIDE = "a value outside"
Number = Callable[[str], int]  # of a patient, by the hospital's id
_MOST_CODES = 200_000  # distinct; a larger number is not a vocabulary but a wrong column
_MOST_PATIENTS = 100  # counted by vocabulary: the largest smallest_cell, as all that is asked is whether they are few


@dataclass(frozen=True)
class Rules:
    """By what records are judged.

    Attributes:
        wanted: codes by feature.
        measures: unit and range by measured code.
        last_day: nothing later is taken.
    """

    vocabulary: Vocabulary
    units: Units
    measures: Mapping[str, Measure]
    wanted: Mapping[str, tuple[str, ...]]
    last_day: date


@dataclass
class Tally:
    """What one import has counted so far; changed by the functions of this file and nobody else's.

    Attributes:
        rows: of ``RECORDS``.
        found: these, labels, and what the importer left out: that of which ``left_out`` is a part.
        files: of the export, where the importer tells; ``lost_files`` of them gave nothing, as they are damaged.
        left_out: rows by outcome, reason and what it is about.
        codes: rows by source code and whether the study can read what it led to.
        patients: of the rows of a vocabulary that it can read or not, the patients; no more than matter.
        bad: rows by measured code and "unit" or "range".
        known: what each source code, as written, leads to.
    """

    rows: int = 0
    found: int = 0
    files: int = 0
    lost_files: int = 0
    left_out: Counter[Why] = field(default_factory=Counter)
    codes: Counter[tuple[str, bool]] = field(default_factory=Counter)
    patients: dict[tuple[str, bool], set[str]] = field(default_factory=dict)
    bad: Counter[tuple[str, str]] = field(default_factory=Counter)
    known: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)


def to_events(records: pd.DataFrame, rules: Rules, number: Number, tally: Tally) -> pd.DataFrame:
    """One chunk of ``RECORDS`` as rows of ``PART``, in order; what is left out is counted in ``tally``."""
    missing = [name for name in RECORDS if name not in records]
    assert not missing, missing
    tally.rows += len(records)
    tally.found += len(records)
    frame = records.loc[:, list(RECORDS)].reset_index(drop=True)
    frame = _keep(frame, frame["patient"].notna() & (frame["patient"] != ""), tally, "a row without a patient")
    frame = _map(frame, rules, tally)
    frame = _timed(frame, rules.last_day, tally)
    frame = _converted(frame, rules, tally)
    ids, originals = pd.factorize(frame["patient"])
    numbers = np.array([number(str(original)) for original in originals], dtype=np.int64)
    return pd.DataFrame(
        {
            "subject_id": numbers[ids] if len(ids) else np.zeros(0, np.int64),
            "time": frame["time"].astype("datetime64[us]"),
            "code": frame["code"],
            "numeric_value": frame["value"].astype(np.float32),
            "unit": frame["unit"],
        }
    ).reset_index(drop=True)


def can_read(code: str, rules: Rules) -> bool:
    """Whether the study, or the importer on its behalf, can do something with a code."""
    return code in rules.measures or is_readable(code, rules.wanted)


def _keep(frame: pd.DataFrame, keep: pd.Series, tally: Tally, reason: str, outcome: str = QUARANTINED) -> pd.DataFrame:
    lost = int((~keep).sum())
    if not lost:
        return frame
    tally.left_out[Why(outcome, reason)] += lost
    return frame[keep].reset_index(drop=True)


def _map(frame: pd.DataFrame, rules: Rules, tally: Tally) -> pd.DataFrame:
    """Each row under the study's codes; ``source`` is its own code, normalised. One row may become several, or none."""
    places, written = pd.factorize(frame["code"].fillna(""))
    counts = np.bincount(places, minlength=len(written))
    groups: dict[tuple[str, bool], list[int]] = {}
    for place, (code, count) in enumerate(zip(written, counts, strict=True)):
        source, targets = _known(str(code), rules.vocabulary, tally)
        if not source:
            tally.left_out[Why(QUARANTINED, "a code that is none, such as free text")] += int(count)
            continue
        if not source.startswith(ONSET):  # which only dates a code that is counted itself
            readable = not targets or any(can_read(target, rules) for target in targets)
            tally.codes[source, readable] += int(count)
            groups.setdefault((vocabulary_of(source), readable), []).append(place)
        if not targets:
            tally.left_out[Why(SKIPPED, "a code that the site's vocabulary table leaves out")] += int(count)
    for group, its_codes in groups.items():
        patients = tally.patients.setdefault(group, set())
        if len(patients) < _MOST_PATIENTS:
            patients.update(map(str, frame.loc[np.isin(places, its_codes), "patient"].unique()[:_MOST_PATIENTS]))
    frame["source"] = pd.Series([tally.known[str(code)][0] for code in written], dtype=object).to_numpy()[places]
    lists = pd.Series([tally.known[str(code)][1] for code in written], dtype=object)
    frame["code"] = lists.to_numpy()[places] if len(lists) else frame["code"]
    frame = frame.explode("code", ignore_index=True)
    return frame[frame["code"].notna()].reset_index(drop=True)


def _known(code: str, vocabulary: Vocabulary, tally: Tally) -> tuple[str, tuple[str, ...]]:
    if code not in tally.known:
        if len(tally.known) >= _MOST_CODES:
            remedy = "Is the column of codes one of numbers or text?"
            raise ExportError("codes", f"must be fewer than {_MOST_CODES} different ones", remedy=remedy)
        source = normal_code(code)
        targets = targets_of(vocabulary, source)
        if targets is None:
            source, targets = (source, (source,)) if is_code(source) else ("", ())
        tally.known[code] = source, targets
    return tally.known[code]


def _timed(frame: pd.DataFrame, last_day: date, tally: Tally) -> pd.DataFrame:
    time = frame["time"]
    static = frame["code"].str.startswith(_STATIC)
    frame = _keep(frame, time.notna() | static, tally, "a row without a date, or with one that cannot be read")
    time = frame["time"]
    frame = _keep(frame, ~(time < EARLIEST), tally, f"a date before {EARLIEST.year}")
    end = pd.Timestamp(last_day) + pd.Timedelta(days=1)
    return _keep(frame, ~(frame["time"] >= end), tally, "a date after the day of the extract, or in the future")


def _converted(frame: pd.DataFrame, rules: Rules, tally: Tally) -> pd.DataFrame:
    """Values in the unit that is wanted; ``unit`` is "" where there is no value."""
    frame["value"] = frame["value"].astype(np.float64)
    measured = frame["code"].isin(list(rules.measures))
    frame = _keep(frame, ~(measured & frame["value"].isna()), tally, "a measurement without a number", SKIPPED)
    frame = _keep(frame, ~np.isinf(frame["value"]), tally, "a value that is not finite")
    values, keep = frame["value"].to_numpy().copy(), np.ones(len(frame), dtype=bool)
    units = np.full(len(frame), "", dtype=object)
    with_value = frame.loc[frame["value"].notna(), ["source", "code", "unit"]].fillna("")
    for (source, code, text), rows in groups_of(with_value):
        units[rows], values[rows], reasons = _group(values[rows], (source, code, text), rules)
        keep[rows] = reasons == ""
        for reason, count in Counter(reasons[reasons != ""]).items():
            tally.left_out[Why(QUARANTINED, reason)] += count
            tally.bad[code, "range" if reason.startswith(_OUTSIDE) else "unit"] += count
    return frame.assign(value=values, unit=units)[keep].reset_index(drop=True)


def groups_of(frame: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], NDArray[np.int64]]]:
    """Each different row of a table of text, and the places, by its index, where it stands."""
    for key, index in frame.groupby(list(frame.columns), sort=False).groups.items():
        yield cast("tuple[str, ...]", key), index.to_numpy()


def _group(
    values: NDArray[np.float64], key: tuple[str, str, str], rules: Rules
) -> tuple[str, NDArray[np.float64], NDArray[np.object_]]:
    """Values of one code and unit: the unit in which they are kept, what they are in it, and why one is left out."""
    source, code, text = key
    unit, linear, reason = _way(source, code, text, rules)
    reasons = np.full(len(values), reason, dtype=object)
    if linear is not None:
        values = values * linear.factor + linear.offset
    measure = rules.measures.get(code)
    if linear is not None and measure is not None:
        outside = (values < measure.low) | (values > measure.high)
        reasons[outside] = f"{_OUTSIDE} {measure.low:g} to {measure.high:g} {unit}"
    return unit, values, reasons


def _way(source: str, code: str, text: str, rules: Rules) -> tuple[str, Linear | None, str]:
    """The unit in which values are kept, how they get there, and why not."""
    if not text.strip():
        return "", None, "a value without a unit"
    unit = normal_unit(rules.units, text)
    if unit is None:
        return "", None, "a unit that is none, such as free text"
    measure = rules.measures.get(code)
    if measure is None:
        return unit, Linear(), ""
    linear = conversion(rules.units, unit, measure.unit, (source, code))
    return measure.unit, linear, "" if linear else f"a unit that cannot be converted to {measure.unit}"
