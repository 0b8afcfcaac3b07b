"""What can a researcher type?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulate(context: typer.Context) -> None:
    """A study on one machine: fedretina simulate [group=choice] [key=value] ... [--multirun]; --help lists them."""
    from simulation.__main__ import main  # imported here so that the other commands are quick

    raise typer.Exit(main(context.args))


def compare(runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")]) -> None:
    """AUROC by arm and inputs over several runs, such as the seeds of a multirun: mean and deviation."""
    from rich.console import Console

    from server.report.record import read_run
    from simulation.results import show_areas

    show_areas([read_run(run) for run in runs], Console(markup=False))
