"""What is seen of a long import? A bar with count and time left; without a terminal, a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LINE_S = 10.0  # between two lines
_REFRESH_S = 0.1  # a bar need not follow every file
_STEP_BYTES = 2**16  # nor every line of a file

Tell = Callable[[int, int], None]  # how many bytes of how many are read


class Progress:
    """Counts what is done of a number that may become known later.

    Args:
        what: is counted, in the plural: files, rows.
    """

    def __init__(self, what: str, console: Console | None = None) -> None:
        self._what, self._console = what, console or Console(stderr=True)
        self._done, self._total, self._read = 0, 0, 0.0
        self._started = self._shown = time.monotonic()
        self._bar: Bar | None = None
        if self._console.is_terminal:
            count = TextColumn("{task.fields[count]}")
            columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
            self._bar = Bar(*columns, console=self._console, transient=True, auto_refresh=False)
            self._task = self._bar.add_task(what, total=None, count="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self._done and kind is None:
            self._print()

    def expect(self, count: int) -> None:
        """So many more are to be done."""
        self._total += count

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        self._total = max(self._total, self._done if self._total else 0)  # a table may list more than there is
        self._show()

    def reach(self, done: int, total: int) -> None:
        """So many are done of so many, for whoever counts by itself."""
        self._total = total
        self.advance(done - self._done)

    def read(self, done: int, total: int) -> None:
        """So many bytes of so many are read, where nobody knows yet how many rows are in them."""
        self._read = min(done / total, 1.0) if total else 0.0
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown < (_REFRESH_S if self._bar else _LINE_S):
            return
        self._shown = now
        if self._bar:
            share = self._share()
            total = 1.0 if share else None
            self._bar.update(self._task, completed=share, total=total, count=self._count("/"), refresh=True)
        else:
            self._print()

    def _share(self) -> float:
        return self._read or (self._done / self._total if self._total else 0.0)

    def _count(self, of: str) -> str:
        total = f"{of}{self._total}" if self._total else ""
        return f"{self._done}{total}" + (f", {self._read:.0%} read" if self._read else "")

    def _print(self) -> None:
        line = f"{self._what}: {self._count(' of ')}{self._left()}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _left(self) -> str:
        share = self._share()
        if not 0 < share < 1:
            return ""
        elapsed_s = time.monotonic() - self._started
        return f", {elapsed_s * (1 - share) / share:.0f} s left"


class Meter:
    """Adds up the bytes that are read of an export, some of them twice, and tells how many of how many."""

    def __init__(self, total: int, tell: Tell | None) -> None:
        self._done, self._told, self._total, self._tell = 0, 0, total, tell

    def add(self, count: int) -> None:
        """So many bytes more are read."""
        self._done += count
        if self._tell and (self._done - self._told >= _STEP_BYTES or self._done >= self._total):
            self._told = self._done
            self._tell(self._done, self._total)
