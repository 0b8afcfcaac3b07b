"""How are some columns of a CSV file read as text, a block at a time?

pyarrow hands over every row of a wrong width, so that such rows are counted; where a quote is never closed it would
take all that follows for one value, so quotes are counted too.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.csv as pacsv

from client.ingest.export import QUARANTINED, ExportError, LeftOut

_BLOCK_BYTES = 2**22  # read at a time; a row must be shorter
_MOST_COLUMNS = 10_000


def read_csv(
    table: str, file: IO[bytes], choose: Callable[[Sequence[str]], dict[str, int]]
) -> Iterator[dict[str, pa.Array] | LeftOut]:
    """The chosen columns as arrays of text, a block at a time, and how many rows were of a wrong width.

    Args:
        choose: from the header to the place of each column that is wanted, by the name that it is to have.

    Raises:
        ExportError: too many columns, or a quote that is not closed.
        pyarrow.ArrowException: what cannot be read.
    """
    first = file.readline(_BLOCK_BYTES)
    separator = "\t" if first.count(b"\t") > first.count(b",") else ","
    is_quoted = separator == "," or b'"' in first  # vocabularies come with tabs, and with quotes that mean nothing
    header = next(csv.reader([first.decode("utf-8-sig", "replace")], delimiter=separator), [])
    if len(header) > _MOST_COLUMNS:
        rule = f"must have at most {_MOST_COLUMNS} columns"
        raise ExportError(f"OMOP export: table {table}", rule, value=len(header))
    places = {name: str(place) for name, place in choose(header).items()}
    stream, wrong_widths = _Stream(file), []

    def skip(row: pacsv.InvalidRow) -> str:
        wrong_widths.append(row.actual_columns)
        return "skip"

    for batch in _batches(stream, len(header), list(places.values()), separator, is_quoted, skip):
        yield {name: batch.column(place) for name, place in places.items()}
    if is_quoted and stream.quotes % 2:
        remedy = "Export it with quotes as in RFC 4180."
        raise ExportError(f"OMOP export: table {table}", "must have every quote closed", remedy=remedy)
    if wrong_widths:
        yield LeftOut(QUARANTINED, f"table {table}: a row with too few or too many columns", len(wrong_widths))


def _batches(
    stream: _Stream,
    width: int,
    places: list[str],
    separator: str,
    is_quoted: bool,
    skip: Callable[[pacsv.InvalidRow], str],
) -> Iterator[pa.RecordBatch]:
    """Batches of the columns at some places, as text; the columns are named by their place."""
    try:
        reader = pacsv.open_csv(
            stream,
            pacsv.ReadOptions(block_size=_BLOCK_BYTES, column_names=[str(p) for p in range(width)], use_threads=False),
            pacsv.ParseOptions(
                delimiter=separator,
                quote_char='"' if is_quoted else False,
                newlines_in_values=is_quoted,
                invalid_row_handler=skip,
            ),
            pacsv.ConvertOptions(
                include_columns=places,
                column_types={place: pa.string() for place in places},
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        if stream.is_blank:  # a table without rows
            return
        raise
    yield from reader


class _Stream(io.RawIOBase):
    """A file whose bytes are made UTF-8, with its quotes counted; it knows whether there was anything at all.

    Codes and numbers are ASCII, so they are read whatever becomes of the rest. pyarrow must not meet other bytes: of a
    row of a wrong width it would fail to tell.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.quotes, self.is_blank = file, 0, True
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = _BLOCK_BYTES) -> bytes:
        while not self._waiting:
            found = self.file.read(size)
            self._waiting = self._decoder.decode(found, final=not found).encode()
            if not found:
                break
        content, self._waiting = self._waiting[:size], self._waiting[size:]
        self.quotes += content.count(b'"')
        self.is_blank = self.is_blank and not content.strip()
        return content
