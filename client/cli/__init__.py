"""What can a hospital's data engineer type? The ``fedretina site`` commands, and ``fedretina audit-model``.

Imports are inside the commands, so that --help is quick.
"""

from __future__ import annotations

import typer

from client.cli.audit import audit_model
from client.cli.data import data
from client.cli.federation import federation

site = typer.Typer(
    no_args_is_help=True, help="For a hospital: its folder of scans and records, and what it takes part in."
)
site.add_typer(data)
site.add_typer(federation)

__all__ = ["audit_model", "site"]
