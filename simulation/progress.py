"""What does a researcher see while a simulation runs? A line a round; on a terminal, one live line an arm besides."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from server.state import RoundRecord
from shared.config import FINETUNE, PRETRAIN
from simulation.arms import Arm


class Progress:
    """Shows the rounds of several arms as they end.

    Args:
        arms: all arms that will run, by which the time left is estimated.
    """

    def __init__(self, arms: Sequence[Arm], console: Console) -> None:
        self._console = console
        self._units = {arm.name: work(arm) for arm in arms}
        self._total = sum(self._units.values())
        self._done: dict[str, float] = {}
        self._latest: dict[str, RoundRecord] = {}
        self._started = time.perf_counter()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def skip(self, arm: Arm) -> None:
        """An arm that had ended before."""
        self._total -= self._units[arm.name]

    def show(self, arm: Arm, record: RoundRecord) -> None:
        """One round has ended."""
        self._latest[arm.name] = record
        self._done[arm.name] = self._done.get(arm.name, 0.0) + _unit(arm, record.stage)
        left = self._seconds_left()
        if self._live is None:
            self._print(f"{arm.name:<28} {record.describe()}  {left}".rstrip())
        else:
            self._live.update(self._table(left), refresh=True)
        for site, reason in record.failed.items():
            self._print(f"{arm.name}: {site} left out: {' '.join(reason.split())}", style="yellow")

    def _print(self, line: str, style: str = "") -> None:
        self._console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    def _seconds_left(self) -> str:
        done = sum(self._done.values())
        if not done or self._total <= 0:
            return ""
        elapsed = time.perf_counter() - self._started
        return f"{max(elapsed * (self._total - done) / done, 0.0):.0f} s left"

    def _table(self, left: str) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, record in self._latest.items():
            table.add_row(name, record.describe())
        table.add_row("", left)
        return table


def work(arm: Arm) -> float:
    """The work of an arm, in rounds of training the heads of a model on images."""
    pretrain = 0 if arm.pretrained else arm.study.pretrain.rounds
    return pretrain * _unit(arm, PRETRAIN) + arm.study.finetune.rounds * _unit(arm, FINETUNE)


def _unit(arm: Arm, stage: str) -> float:
    """The work of a round, roughly: it serves the estimate of the time left and which arm goes first."""
    share = 0.25 if arm.site else 1.0  # a site alone has a part of the data
    if stage == PRETRAIN:
        return share * 8.0
    if stage != FINETUNE:
        return 0.0
    if not arm.study.image_modalities:
        return share * 0.05
    frozen = arm.study.pretrain.rounds and not arm.study.finetune.encoder_lr
    return share * (1.0 if frozen else 2.5)
