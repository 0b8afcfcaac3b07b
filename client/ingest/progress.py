"""What is seen of a long import? A bar with count and time left; without a terminal, a line now and then."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LINE_S = 10.0  # between two lines
_REFRESH_S = 0.1  # a bar need not follow every file


class Progress:
    """Counts what is done of a number that may become known later.

    Args:
        what: is counted, in the plural: files, rows.
    """

    def __init__(self, what: str, console: Console | None = None) -> None:
        self._what, self._console = what, console or Console(stderr=True)
        self._done, self._total = 0, 0
        self._started = self._shown = time.monotonic()
        self._bar: Bar | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=self._console, transient=True, auto_refresh=False)
            self._task = self._bar.add_task(what, total=None)

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
        now = time.monotonic()
        if now - self._shown < (_REFRESH_S if self._bar else _LINE_S):
            return
        self._shown = now
        if self._bar:
            self._bar.update(self._task, completed=self._done, total=self._total or None, refresh=True)
        else:
            self._print()

    def reach(self, done: int, total: int) -> None:
        """So many are done of so many, for whoever counts by itself."""
        self._total = total
        self.advance(done - self._done)

    def _print(self) -> None:
        of = f" of {self._total}" if self._total else ""
        line = f"{self._what}: {self._done}{of}{self._left()}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _left(self) -> str:
        if not 0 < self._done < self._total:
            return ""
        elapsed_s = time.monotonic() - self._started
        return f", {elapsed_s * (self._total - self._done) / self._done:.0f} s left"
