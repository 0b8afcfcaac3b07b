"""What do the columns of a hospital's CSV file mean? A mapping file, written once by its data engineer."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from client.ingest.export import ExportError
from client.ingest.times import ISO, check_format
from shared.errors import ConfigError
from shared.knobs import knob, load

_TASK = re.compile(r"[a-z0-9_]{1,40}")  # it becomes the name of a file


@dataclass(frozen=True)
class Time:
    """How a time is written: the columns, joined by a space, after ``values`` and ``replace``."""

    columns: tuple[str, ...] = knob(help="columns that together tell the time")
    format: str = knob(ISO, "as Python's strptime has it, such as %d.%m.%Y %H:%M")
    values: dict[str, dict[str, str]] = knob({}, "by column: what a whole value stands for, such as 99 for 12")
    replace: dict[str, str] = knob({}, "parts of the text and what stands for them, such as names of months")

    def check_consistent(self, path: str) -> None:
        check_format(self.format, f"{path}format")


@dataclass(frozen=True)
class Column:
    """What a column gives: numbers of ``code`` in ``unit``, codes by ``values``, or each value behind ``prefix``."""

    code: str = knob("", "code of the number, such as LOINC//8480-6")
    unit: str = knob("", "unit of the number")
    unit_column: str = knob("", "column that holds the unit instead")
    values: dict[str, str] = knob({}, "code by value, in any case; an empty code: nothing")
    prefix: str = knob("", "the code is this, // and the value in capitals, without spaces")
    time: Time | None = knob(None, "when, if not at the row's time")
    static: bool = knob(False, "has no time, such as sex")

    def check_consistent(self, path: str) -> None:
        if (bool(self.code) + bool(self.values) + bool(self.prefix)) != 1:
            raise ConfigError(path.rstrip("."), "must have one of code, values and prefix")
        if bool(self.code) != (bool(self.unit) + bool(self.unit_column) == 1):
            rule = "must have unit or unit_column with code, and neither without"
            raise ConfigError(path.rstrip("."), rule, remedy='A count has the unit "1".')


@dataclass(frozen=True)
class Event:
    """A column that tells when something happened: a date of birth, of death, of a diagnosis."""

    code: str = knob(help="MEDS_BIRTH, MEDS_DEATH, OBSERVATION//START, OBSERVATION//END, or any code")
    format: str = knob(ISO, "as Python's strptime has it")
    replace: dict[str, str] = knob({}, "parts of the text and what stands for them")

    def check_consistent(self, path: str) -> None:
        check_format(self.format, f"{path}format")


@dataclass(frozen=True)
class Long:
    """A file with one code a row."""

    code: str = knob(help="column of the code")
    vocabulary: str = knob("", "vocabulary of all codes, such as ICD10")
    vocabulary_column: str = knob("", "column that holds it instead")
    value: str = knob("", "column of the value, where there are values")
    unit: str = knob("", "column of the unit")
    constant_unit: str = knob("", "unit of all values, where no column holds it")
    answers: tuple[str, ...] = knob(
        ("LOINC//72166-2",), "codes whose value is an answer, not a number: it is put behind the code"
    )

    def check_consistent(self, path: str) -> None:
        if bool(self.unit) and bool(self.constant_unit):
            raise ConfigError(path.rstrip("."), "must have one of unit and constant_unit at most")
        if bool(self.vocabulary) and bool(self.vocabulary_column):
            raise ConfigError(path.rstrip("."), "must have one of vocabulary and vocabulary_column at most")


@dataclass(frozen=True)
class Age:
    """Age in completed years at the row's time, where there is no date of birth; the birth is known to a year then."""

    column: str = knob(help="column of the age")


@dataclass(frozen=True)
class Label:
    """An outcome that the file states in a column."""

    column: str = knob(help="column of the outcome")
    values: dict[str, bool] = knob(help="outcome by value; another value: not known, no label")
    horizon_days: int = knob(help="until when after the prediction time it was looked for", unit="days", ge=1, le=36500)
    time: Time | None = knob(None, "the prediction time, if not the row's time")


@dataclass(frozen=True)
class TableMapping:
    """What a CSV file holds."""

    patient: tuple[str, ...] = knob((), "columns that together name the patient; none: each row is a patient")
    delimiter: str = knob(",", "between two fields: one character")
    decimal: str = knob(".", "before the decimals", choices=[".", ","])
    encoding: str = knob("utf-8-sig", "of the file, such as windows-1252")
    where: dict[str, tuple[str, ...]] = knob({}, "rows to take: by column, the values that it must have")
    time: Time | None = knob(None, "when the row's events happened")
    hours_before: float = knob(
        0.0, "events are dated so long before the row's time, where that is a prediction time", unit="h", ge=0.0
    )
    columns: dict[str, Column] = knob({}, "what columns give, by column")
    dates: dict[str, Event] = knob({}, "columns that tell when something happened, by column")
    age: Age | None = knob(None)
    long: Long | None = knob(None)
    labels: dict[str, Label] = knob({}, "outcomes, by task")

    def check_consistent(self, path: str) -> None:
        if len(self.delimiter) != 1:
            raise ConfigError(f"{path}delimiter", "must be one character", value=self.delimiter)
        if not (self.columns or self.dates or self.age or self.long):
            raise ConfigError(path.rstrip(": ") or "mapping", "must say what columns, dates, age or long give")
        if self.time is None:
            timeless = [name for name, column in self.columns.items() if not (column.time or column.static)]
            timeless += ["long"] * (self.long is not None) + ["age"] * (self.age is not None)
            timeless += [task for task, label in self.labels.items() if label.time is None]
            if timeless:
                raise ConfigError(f"{path}time", "must be given", remedy=f"It dates {', '.join(timeless[:5])}.")
        if any(not time.columns for time in _times(self)):
            raise ConfigError(f"{path}time.columns", "must name a column")
        for task in self.labels:
            if not _TASK.fullmatch(task):
                raise ConfigError(f"{path}labels", "must be named by small letters, digits and _", value=task)


def needed(mapping: TableMapping) -> list[str]:
    """Every column of the file that the mapping names, once."""
    names = [*mapping.patient, *mapping.where, *mapping.columns, *mapping.dates]
    names += [name for time in _times(mapping) for name in time.columns]
    names += [column.unit_column for column in mapping.columns.values()]
    names += [label.column for label in mapping.labels.values()]
    names += [mapping.age.column] if mapping.age else []
    if mapping.long:
        names += [mapping.long.code, mapping.long.vocabulary_column, mapping.long.value, mapping.long.unit]
    return [name for name in dict.fromkeys(names) if name]


def _times(mapping: TableMapping) -> list[Time]:
    times = [mapping.time, *(column.time for column in mapping.columns.values())]
    return [time for time in (*times, *(label.time for label in mapping.labels.values())) if time]


class _Loader(yaml.SafeLoader):
    """Keys as they are written: values of a hospital such as 1, no and 0.50 must not become numbers or booleans."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        self.flatten_mapping(node)
        return {_key(key): self.construct_object(value, deep=True) for key, value in node.value}


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.YAMLError("a key must be a word")
    return str(node.value)


def read_mapping(file: Path) -> TableMapping:
    """The mapping in a file.

    Raises:
        ExportError: no such file, or not YAML.
        ConfigError: an unknown setting, a wrong type, or settings that contradict each other.
    """
    name = f"mapping {file.name}"
    if file.exists() and not file.is_file():  # a pipe would be waited for, without end
        raise ExportError(name, "must be a regular file", remedy="It is the YAML file that says what the columns are.")
    try:
        data = yaml.load(file.read_text(encoding="utf-8-sig"), _Loader)  # a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(name, "must be a readable file in UTF-8", value=type(error).__name__) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ExportError(name, "must be valid YAML", value=str(error).splitlines()[0]) from None
    return load(TableMapping, data or {}, f"{name}: ")
