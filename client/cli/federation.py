"""How does a hospital take part in a federation? Keys, a kit, decisions on studies, and the process that serves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.options import DIR, HERE, AsJson, Folder, Site

if TYPE_CHECKING:
    from shared.config import Study
    from shared.keys import PrivateKey

federation = typer.Typer()
StudyName = Annotated[str, typer.Argument(metavar="[STUDY]", show_default=False)]
# In the epilog: this typer drops the help of arguments under newer releases of click.
_STUDY = "STUDY: first digits of its digest, its name, or a study file. None: the only one that was asked for."


@federation.command()
def keys(
    folder: Site = HERE,
    new: Annotated[bool, typer.Option("--new", help="Replace the key; enrolment and approvals start anew.")] = False,
) -> None:
    """Makes the site's key, or shows the one that it has; the private half never leaves the site."""
    from client.membership import PRIVATE_KEY, make_keys, write_public_key
    from shared.keys import fingerprint, parse_public_key
    from shared.site_folder import SiteFolder

    name = SiteFolder(folder).name  # a wrong folder shows here, not when the coordinator has enrolled it
    there = (folder / PRIVATE_KEY).exists() and not new
    file = write_public_key(folder) if there else make_keys(folder, anew=new)
    digits = fingerprint(parse_public_key(file.read_bytes(), str(file)))
    typer.echo(f"{file}: {'the key' if there else 'a new key'} of site {name}, fingerprint {digits}")
    typer.echo("Next: send this file to the coordinator and compare the fingerprint by telephone; a kit comes back.")


@federation.command(epilog="KIT: the file that the coordinator sent back for the site's key.")
def join(kit: Path, folder: Site = HERE) -> None:
    """Joins a federation, by the kit that its coordinator returned for the site's key."""
    from client.membership import join as become_member

    joined = become_member(folder, kit)
    typer.echo(
        f"{joined.site} joined {joined.address} until {joined.expires_at[:10]}; "
        f"fingerprint of the coordinator's authority {joined.fingerprint}"
    )
    typer.echo(f"Next: fedretina site start --site {folder}")


@federation.command(epilog=_STUDY)
def review(study: StudyName = "", folder: Site = HERE) -> None:
    """Says what a study would do here, what leaves, what it cannot do, and what changed since the last approval."""
    from client.approvals import latest_approved, short
    from client.review import review as explain
    from client.review import standing
    from client.site import read_settings
    from client.spending import outlook
    from shared.knobs import digest

    key, found = _key_and_study(folder, study)
    public = key.public_key()
    decided, previous = standing(folder, public, found), latest_approved(folder, public)
    for line in explain(found, decided, previous, read_settings(folder), outlook(folder, found)):
        typer.echo(line)
    typer.echo(f"\nNext: fedretina site approve {short(digest(found))} --site {folder}, or refuse")


@federation.command(epilog=_STUDY)
def approve(
    study: StudyName = "",
    folder: Site = HERE,
    days: Annotated[int, typer.Option(help="For how long, in days.", min=1, max=3660)] = 90,
    max_epsilon: Annotated[
        float | None,
        typer.Option(help="Most privacy that it may cost a patient here.", show_default="what the study plans"),
    ] = None,
) -> None:
    """Lets a study be done here, exactly as it is, by the code that is installed now."""
    from client.approvals import APPROVED, decide, short
    from shared.text import printable

    key, found = _key_and_study(folder, study)
    decision = decide(folder, key, found, APPROVED, days, max_epsilon=max_epsilon)
    privacy = "" if math.isinf(decision.max_epsilon) else f"ε <= {decision.max_epsilon:.4g}, "
    typer.echo(
        printable(
            f"approved {found.name} {short(decision.study_digest)} for code {short(decision.code_digest)}: "
            f"{decision.rounds} training rounds, {privacy}until {decision.expires_at[:10]}"
        )
    )
    typer.echo(f"Next: fedretina site start --site {folder}, unless it runs; revoke takes the approval back.")


@federation.command(epilog=_STUDY)
def refuse(study: StudyName = "", folder: Site = HERE) -> None:
    """Tells the coordinator that a study will not be done here."""
    from client.approvals import REFUSED, decide, short
    from shared.text import printable

    key, found = _key_and_study(folder, study)
    decision = decide(folder, key, found, REFUSED)
    typer.echo(printable(f"refused {found.name} {short(decision.study_digest)}: its tasks are answered by that"))
    typer.echo(f"Next: nothing; approve {short(decision.study_digest)} replaces the decision.")


@federation.command(epilog=_STUDY)
def revoke(study: StudyName = "", folder: Site = HERE) -> None:
    """Takes an approval back: the study is refused here, and what is being done for it is not sent."""
    from client.approvals import revoke as take_back
    from client.approvals import short
    from shared.text import printable

    key, found = _key_and_study(folder, study)
    decision = take_back(folder, key, found)
    typer.echo(printable(f"revoked {found.name} {short(decision.study_digest)}: no further task of it is done"))
    typer.echo("What was sent before stays with the coordinator; ask there for its deletion.")


@federation.command()
def start(
    folder: Site = HERE, verbose: Annotated[bool, typer.Option("--verbose", help="Log details as well.")] = False
) -> None:
    """Takes part until Ctrl-C or SIGTERM: asks for tasks, does those that are approved, sends the replies."""
    from client.node import serve
    from client.parcels import LOG
    from shared.errors import SiteError
    from shared.logs import log_to
    from shared.processes import stop_on_signals

    if not (folder / "dataset.yaml").exists():  # SiteFolder would say more, and bring pandas into a process that waits
        raise SiteError(str(folder / "dataset.yaml"), "must exist", remedy="Name the site folder by --site.")
    stop = stop_on_signals()
    log_to(folder / LOG, verbose)
    log_to(verbose=verbose)
    serve(folder, stop)


@federation.command("ledger", epilog=DIR)
def ledger_(folder: Folder = HERE, as_json: AsJson = False) -> None:
    """Says how much of its patients' privacy this site has spent, on which studies, and how much is left."""
    from client.spending import print_statement, statement

    _tell(statement(folder), as_json, print_statement)


@federation.command(epilog=DIR)
def audit(folder: Folder = HERE, as_json: AsJson = False) -> None:
    """Says what left this site, when and how much, and whether the record of it is whole. Exit code 1: it is not."""
    from client.departures import audit as look
    from client.departures import print_audit

    found = look(folder)
    _tell(found, as_json, print_audit)
    raise typer.Exit(1 if found["faults"] else 0)


def _tell(found: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        show(found)


def _key_and_study(folder: Path, name: str) -> tuple[PrivateKey, Study]:
    from client.approvals import find_study
    from client.membership import own_key

    return own_key(folder), find_study(folder, name)
