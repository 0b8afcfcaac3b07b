"""How does a terminal show what runs found?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

from server.report.page import REPORT
from server.report.record import INPUTS, Run, read_run

_CEILING = "best possible"


def show_run(folder: Path, console: Console) -> None:
    """Results of one run."""
    run = read_run(folder)
    show_areas([run], console)
    console.print(f"{run.seconds['total']:.0f} s, report {folder / REPORT}", highlight=False, soft_wrap=True)


def show_areas(runs: Sequence[Run], console: Console) -> None:
    """AUROC by arm and inputs: of one run with half its 95 % interval, of several their mean and deviation."""
    arms = list(dict.fromkeys(arm for run in runs for arm in run.arms))
    inputs = [name for name in INPUTS if any(name in run.inputs for run in runs)]
    if not inputs:
        return
    table = Table("AUROC", *inputs, box=None)
    for arm in arms:
        table.add_row(arm, *(_cell(runs, arm, column) for column in inputs))
    if any(run.ceiling for run in runs):
        ceilings = ([run.ceiling[column] for run in runs if column in run.ceiling] for column in inputs)
        table.add_row(_CEILING, *map(_spread, ceilings))
    console.print(table)
    what = "half the 95 % interval" if len(runs) == 1 else f"deviation over {len(runs)} runs"
    console.print(f"mean over sites, held-out patients; ± {what}", highlight=False)


def _cell(runs: Sequence[Run], arm: str, inputs: str) -> str:
    scores = [score for run in runs if (score := run.score(arm, inputs)) and score.auroc is not None]
    text = _spread([score.auroc for score in scores if score.auroc is not None])
    interval = scores[0].interval if len(runs) == 1 and scores else None
    return text + (f" ± {(interval[1] - interval[0]) / 2:.3f}" if interval else "")


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
