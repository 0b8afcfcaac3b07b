"""What can a hospital's data engineer type? The ``fedretina site`` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

site = typer.Typer(no_args_is_help=True, help="For a hospital: its folder of scans and records.")


@site.callback()
def _group() -> None:
    """Keeps ``check`` a command of a group while it is the only one."""


@site.command()
def check(folder: Annotated[Path, typer.Argument(help="The site folder.")]) -> None:
    """Does a site folder keep the contract? Lists every fault at once; nothing is changed and nothing leaves."""
    from shared.schema import check_site  # imported here so that --help is quick
    from shared.site_folder import SiteFolder

    site_folder = SiteFolder(folder)
    check_site(site_folder)
    images, events = site_folder.images(), site_folder.events()
    patients = len(set(images["subject_id"]) | set(events["subject_id"]))
    typer.echo(f"{site_folder.name}: {patients} patients, {len(images)} scans, {len(events)} events: no fault found")
