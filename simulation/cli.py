"""What can a researcher type?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shared.config import Study


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


def rehearse(
    overrides: Annotated[list[str] | None, typer.Argument(help="sites=3, run.dir=PATH, and as of simulate.")] = None,
) -> None:
    """A whole federation on this machine: the real commands, processes and connections, on synthetic hospitals."""
    from simulation.rehearse import main  # imported here so that the other commands are quick

    raise typer.Exit(main(overrides or []))


def compose_study(overrides: list[str]) -> Study:
    """The study of some overrides; raises ``ConfigError``."""
    from simulation.compose import compose_study

    return compose_study(overrides)
