"""What can a coordinator type?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/latest.")]) -> None:
    """Writes the report of a finished run anew, and says where it is."""
    from server.report.page import write_report  # imported here so that --help is quick

    typer.echo(write_report(run))
