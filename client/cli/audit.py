"""What can a hospital type to attack a model before others can? ``fedretina audit-model``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import HERE, Site


def audit_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL_OR_RUN")],
    folder: Site = HERE,
    shadows: Annotated[int, typer.Option(help="Shadow models to train for the attack; more are stronger.")] = 16,
    redrawn: Annotated[int, typer.Option(help="Patients to try to redraw from their gradient; 0: none.")] = 4,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write.", show_default="DIR/audit")] = None,
) -> None:
    """Attacks a model with this site's own patients, and writes audit.html and audit.json. Both stay at the site.

    Exit code 0: nothing found, 1: have a look, 2: patients can be told.
    """
    from client.audit.result import FAIL, WARN
    from client.audit.result import audit_model as attack
    from client.audit.target import find_model
    from client.audit.words import VERDICTS, headline
    from client.audit.write import write_audit
    from client.ingest.progress import Progress

    with Progress("shadow models") as shown:
        audit = attack(find_model(model), folder, shadows, redrawn, lambda done: shown.reach(done, shadows))
    page, table = write_audit(out or folder / "audit", audit)
    typer.echo(f"{VERDICTS[audit.verdict].lower()}: {headline(audit)}")
    typer.echo(f"written: {page}, {table}")
    raise typer.Exit({WARN: 1, FAIL: 2}.get(audit.verdict, 0))
