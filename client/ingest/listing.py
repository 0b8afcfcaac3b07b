"""What does a table of files say? Its rows, read one by one, and where in the export each file is."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from client.ingest.export import QUARANTINED, ExportError, LeftOut, LeftOutError, Scan, Source

_SHOWN = 40  # columns that an error lists
_DRIVE = re.compile("[A-Za-z]:")
_EYES = {"r": "R", "right": "R", "od": "R", "re": "R", "l": "L", "left": "L", "os": "L", "le": "L"}


@dataclass(frozen=True)
class ListedSource(Source):
    """A file that a table names, with what the table says of it.

    Attributes:
        scan: but for the pixels.
        left_out: why the file is not to be opened.
    """

    scan: Scan | None = None
    left_out: LeftOut | None = None


@dataclass(frozen=True)
class Table:
    """A table with a line of column names.

    Attributes:
        columns: their names.
        rows: number of each row, from 1, and its cells, as many as there are columns; or None when it is no such row.
    """

    columns: Sequence[str]
    rows: Iterator[tuple[int, Sequence[str] | None]]


@contextmanager
def open_table(file: Path, separator: str, encoding: str = "utf-8-sig") -> Iterator[Table]:
    """Read a table; bytes of another encoding survive, as names of files may be of any.

    Raises:
        ExportError: it cannot be read or has no column names.
    """
    try:
        with file.open(encoding=encoding, errors="surrogateescape", newline="") as stream:
            reader = csv.reader(stream, delimiter=separator)
            columns = [name.strip() for name in next(reader, [])]
            if not any(columns):
                raise ExportError(file.name, "must begin with a line of column names")
            yield Table(columns, _rows(reader, len(columns)))
    except csv.Error:
        raise ExportError(file.name, "must be a table of text", remedy="Export it again as CSV.") from None
    except (LookupError, UnicodeError) as error:
        raise ExportError(file.name, "must be text in the encoding that is stated", value=str(error)) from None
    except OSError as error:
        raise ExportError(file.name, "must be readable", value=error.strerror) from None


def _rows(reader: Iterator[list[str]], width: int) -> Iterator[tuple[int, Sequence[str] | None]]:
    number = 0
    while True:
        number += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:  # a cell without end
            yield number, None
            continue
        if any(cells):
            cells = [cell.strip() for cell in cells]
            yield number, cells + [""] * (width - len(cells)) if len(cells) <= width else None


def column_error(setting: str, wanted: str, table: str, columns: Sequence[str]) -> ExportError:
    """What to say of a column that is not there."""
    more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
    listed = ", ".join(name.encode("utf-8", "replace").decode()[:60] for name in columns[:_SHOWN])
    return ExportError(setting, f"must name a column of {table}", value=wanted, remedy=f"Columns: {listed}{more}.")


def inside(path: str) -> PurePosixPath:
    """A path within the export, of either system's separators; raises ``LeftOutError`` for any other."""
    if not path:
        raise LeftOutError(QUARANTINED, "has no path in the table")
    relative = PurePosixPath(path.replace("\\", "/"))
    if relative.is_absolute() or _DRIVE.match(path) or ".." in relative.parts:
        raise LeftOutError(QUARANTINED, "has a path that leads out of the export")
    return relative


def eye_of(word: str) -> str:
    """R or L for what people write; raises ``LeftOutError`` for another word."""
    try:
        return _EYES[word.casefold()]
    except KeyError:
        raise LeftOutError(QUARANTINED, "has an eye that is neither right nor left") from None
