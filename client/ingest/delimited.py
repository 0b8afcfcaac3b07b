"""How is a CSV file of any size read, and each of its rows accounted for?

Python's own reader, because pandas pads short rows, and drops long ones without a count. Memory is bounded by the
length of a line and of a field: a quote that is never closed ends in an error, not in a full memory.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

import pandas as pd

from client.ingest.export import QUARANTINED, ExportError, LeftOut
from client.ingest.progress import Tell

ROW = "\x00row"  # column of the row's number, from 1; no file can have a column of this name
_LONGEST_LINE = 2**24
_CELLS = 2**21  # of a chunk
_NAME = "CSV export"


def read_columns(
    file: Path,
    names: Sequence[str],
    *,
    delimiter: str = ",",
    encoding: str = "utf-8-sig",
    chunk_rows: int = 50_000,
    tell: Tell | None = None,
) -> Iterator[pd.DataFrame | LeftOut]:
    """Some columns of a file as text, and ``ROW``; rows of another length than the header are left out.

    Args:
        tell: how many bytes of how many are read.

    Raises:
        ExportError: not a file, not text in that encoding, not CSV, or a column that is not there.
    """
    try:
        _check_regular(file)  # a pipe would be waited for, without end
        with file.open("rb") as content, TextIOWrapper(content, encoding, newline="") as stream:
            rows = csv.reader(_lines(stream), delimiter=delimiter, strict=True)
            for chunk in _chunks(rows, names, min(chunk_rows, max(1, _CELLS // (len(names) + 1)))):
                yield chunk
                if tell:
                    tell(content.tell(), file.stat().st_size)
    except UnicodeError:
        remedy = "Set encoding in the mapping, such as windows-1252; compressed files are not read."
        raise ExportError(_NAME, f"must be text in {encoding}", remedy=remedy) from None
    except csv.Error as error:
        raise ExportError(_NAME, "must be well-formed CSV", value=str(error)) from None
    except LookupError:
        raise ExportError("mapping: encoding", "must be one that Python knows", value=encoding) from None
    except (OSError, ValueError, TypeError) as error:  # the latter two: a delimiter that csv refuses
        raise ExportError(_NAME, "must be a readable file", value=type(error).__name__) from None


def _check_regular(file: Path) -> None:
    if file.is_dir():
        raise ExportError(_NAME, "must be one file", value="a folder", remedy="Name the CSV file in it.")
    if file.exists() and not file.is_file():
        raise ExportError(_NAME, "must be a regular file", value="a pipe or device", remedy="Save it to a file first.")


def _lines(stream: TextIO) -> Iterator[str]:
    while line := stream.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise csv.Error(f"a line of {_LONGEST_LINE} characters or more")
        yield line


def _chunks(rows: Iterator[list[str]], names: Sequence[str], chunk_rows: int) -> Iterator[pd.DataFrame | LeftOut]:
    header = [name.strip() for name in next(rows, [])]
    places = _places(header, names)
    taken: list[list[str]] = []
    numbers: list[int] = []
    bad = 0
    for number, row in enumerate(rows, start=1):
        if len(row) == len(header):
            taken.append([row[place] for place in places])
            numbers.append(number)
        elif row:  # a blank line is none
            bad += 1
        if len(taken) == chunk_rows:
            yield _frame(taken, numbers, names)
            taken, numbers = [], []
    if taken:
        yield _frame(taken, numbers, names)
    if bad:
        yield LeftOut(QUARANTINED, "a row with more or fewer fields than the header", bad)


def _places(header: list[str], names: Sequence[str]) -> list[int]:
    places = {name: place for place, name in enumerate(header)}
    missing = [name for name in names if name not in places]
    if missing:
        there = ", ".join(name[:40] for name in header[:20]) + (f" and {len(header) - 20} more" * (len(header) > 20))
        found = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" * (len(missing) > 20))
        remedy = f"There are: {there or 'none'}. Is the delimiter right?"
        raise ExportError(_NAME, f"must have the columns that the mapping names; missing: {found}", remedy=remedy)
    counts = Counter(header)
    twice = [name for name in names if counts[name] > 1]
    if twice:
        raise ExportError(f"{_NAME}: column {twice[0]}", "must be there once")
    return [places[name] for name in names]


def _frame(rows: list[list[str]], numbers: list[int], names: Sequence[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(names), dtype="str")
    return pd.DataFrame({**{name: frame[name].str.strip() for name in names}, ROW: numbers})
