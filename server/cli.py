"""What can a coordinator type? The ``fedretina coordinator`` commands, and ``fedretina report``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from server.coordinator import RunFolder
    from shared.config import Study

    # The caller's way from overrides to a study, in ``context.obj``: the server composes none itself.
    Compose = Callable[[list[str]], Study]

coordinator = typer.Typer(
    no_args_is_help=True, help="For a coordinator: sites, studies, and the service that runs them."
)
Folder = Annotated[Path, typer.Option("--folder", envvar="FEDRETINA_COORDINATOR", help="Folder of the coordinator.")]
RunName = Annotated[str, typer.Argument(metavar="[RUN]", help="Name of a run; none: the latest.", show_default=False)]
StudyArguments = Annotated[
    list[str], typer.Argument(metavar="STUDY", help="A study's file, or overrides such as experiment=demo seed=3.")
]
_FOLDER = Path("coordinator")


# Imports are inside the commands, so that --help is quick.


def report(run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/latest.")]) -> None:
    """Writes the report of a finished run anew, and says where it is."""
    from server.report.page import write_report

    typer.echo(write_report(run))


@coordinator.command()
def init(
    address: Annotated[str, typer.Option(help="Name or IP address by which sites reach this machine.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of the machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 9443,
    folder: Folder = _FOLDER,
) -> None:
    """Makes a coordinator's folder: settings, certificate authority, server certificate."""
    from server.coordinator import Settings
    from server.coordinator import init as make
    from shared.knobs import check

    settings = Settings(address, host, port)
    check(settings)
    make(folder, settings)
    typer.echo(f"{folder}: coordinator at {settings.public}, listening on {host}:{port}")
    typer.echo(f"Next: fedretina coordinator enrol SITE KEY_FILE --folder {folder}, then serve.")


@coordinator.command()
def enrol(
    site: Annotated[str, typer.Argument(help="Name of the site, as in its dataset.yaml.")],
    key_file: Annotated[Path, typer.Argument(help="The public key that the site sent: its state/keys/site.pub.")],
    days: Annotated[int, typer.Option(help="For how long the site may connect.", min=1, max=3650)] = 365,
    folder: Folder = _FOLDER,
) -> None:
    """Lets a site connect, and writes the kit that it joins with.

    SITE is its name in its dataset.yaml, KEY_FILE what it sent: its state/keys/site.pub.
    """
    from server.coordinator import read_settings, write_kit
    from server.enrolment import enrol as admit
    from shared.errors import KeyFileError
    from shared.kit import parse_kit

    read_settings(folder)
    if not key_file.is_file():
        raise KeyFileError(str(key_file), "must exist", remedy="The site makes it by fedretina site keys.")
    enrolment = admit(folder, site, key_file.read_bytes(), days)
    kit = write_kit(folder, enrolment)
    typer.echo(f"{site} may connect until {enrolment.expires_at[:10]}, with the key {enrolment.fingerprint}")
    authority = parse_kit(kit.read_bytes(), kit.name).fingerprint
    typer.echo(f"the authority's fingerprint, which the site sees when it joins: {authority}")
    typer.echo("Compare both with the site, by telephone: they tell that key and kit came from where they should.")
    typer.echo(f"Next: send {kit} to the site, which joins by fedretina site join {kit.name} --site DIR")


@coordinator.command()
def revoke(site: Annotated[str, typer.Argument(help="Name of the site.")], folder: Folder = _FOLDER) -> None:
    """Takes a site's leave to connect; what it has sent before stays in the runs."""
    from server.coordinator import read_settings
    from server.enrolment import revoke as dismiss

    read_settings(folder)
    dismiss(folder, site)
    typer.echo(f"{site} may no longer connect; to come back it makes a new key and is enrolled again")


@coordinator.command()
def sites(folder: Folder = _FOLDER) -> None:
    """Lists the sites that were enrolled: keys, until when, and which are connected now."""
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    from server.coordinator import DATABASE, read_settings
    from server.enrolment import read_enrolments
    from server.serve import is_served

    read_settings(folder)
    connected: set[str] = set()
    if is_served(folder) and (folder / DATABASE).exists():
        from server.link import connected_keys, open_link_state

        connected = connected_keys(open_link_state(folder / DATABASE))
    now, table = datetime.now(UTC), Table("site", "key", "enrolled", "expires", "state", "connected", box=None)
    for one in read_enrolments(folder):
        state = "valid" if one.is_valid(now) else "revoked" if one.revoked_at else "expired"
        here = "yes" if one.public_key in connected and state == "valid" else ""
        table.add_row(one.site, one.fingerprint, one.enrolled_at[:10], one.expires_at[:10], state, here)
    Console(markup=False, highlight=False).print(table)


@coordinator.command()
def serve(
    verbose: Annotated[bool, typer.Option("--verbose", help="Log details as well.")] = False, folder: Folder = _FOLDER
) -> None:
    """Serves the sites and runs the studies, one after the other, until Ctrl-C or SIGTERM."""
    from server.coordinator import LOG, read_settings
    from server.serve import serve as keep_serving
    from shared.logs import log_to
    from shared.processes import stop_on_signals

    read_settings(folder)
    log_to(folder / LOG, verbose)
    log_to(verbose=verbose)
    keep_serving(folder, stop_on_signals())


@coordinator.command()
def study(
    context: typer.Context,
    settings: StudyArguments,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("study.json"),
) -> None:
    """Writes a study to a file, for the sites to review and approve before it is run.

    STUDY is overrides such as experiment=demo seed=3, as of fedretina simulate.
    """
    from shared.files import write_atomic
    from shared.knobs import digest, to_json

    composed = _study(context, settings)
    write_atomic(out, to_json(composed).encode())
    typer.echo(f"{out}: study '{composed.name}' {digest(composed)[:12]}")
    typer.echo(f"Next: a site approves it by fedretina site approve {out.name} --site DIR")


@coordinator.command()
def run(
    context: typer.Context,
    settings: StudyArguments,
    name: Annotated[str, typer.Option(help="Name of the run; none: the study's, with its seed.")] = "",
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; status --follow follows.")] = False,
    folder: Folder = _FOLDER,
) -> None:
    """Runs a study once enough sites have approved it, and follows it; the exit code is 0 when it has finished.

    STUDY is a file, or overrides such as experiment=demo seed=3.
    """
    from server.coordinator import create_run

    own = create_run(folder, _study(context, settings), name)
    typer.echo(f"run {own.folder}")
    _warn_unless_served(folder)
    if not detach:
        _follow(folder, own)


@coordinator.command()
def status(
    run: RunName = "",
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run has ended.")] = False,
    folder: Folder = _FOLDER,
) -> None:
    """Says how far the runs are; of a RUN that is named, every round."""
    from server.coordinator import find_run, read_settings, runs
    from server.follow import describe, describe_status, rounds

    read_settings(folder)
    _warn_unless_served(folder)
    if follow:
        _follow(folder, find_run(folder, run))
        return
    for one in [find_run(folder, run)] if run else runs(folder):
        records = rounds(one)
        for record in records if run else records[-1:]:
            typer.echo("\n".join(describe(record)))
        typer.echo(describe_status(one, one.status))


@coordinator.command()
def stop(run: RunName = "", folder: Folder = _FOLDER) -> None:
    """Stops a RUN, or the latest; its sites end what they do for it."""
    from server.coordinator import find_run

    own = find_run(folder, run)
    own.ask_to_stop()
    typer.echo(f"{own.name} is to be stopped; go on with it by fedretina coordinator resume {own.name}")
    _warn_unless_served(folder)


@coordinator.command()
def resume(run: RunName = "", folder: Folder = _FOLDER) -> None:
    """Lets a RUN that was stopped or has failed, or the latest, go on after its last complete round."""
    from server.coordinator import find_run

    own = find_run(folder, run)
    own.go_on()
    typer.echo(f"{own.name} goes on; follow it by fedretina coordinator status {own.name} --follow")
    _warn_unless_served(folder)


@coordinator.command("report")
def report_run(run: RunName = "", folder: Folder = _FOLDER) -> None:
    """Writes the report of a finished run anew, and says where it is."""
    from server.coordinator import find_run

    report(find_run(folder, run).folder)


def _study(context: typer.Context, settings: list[str]) -> Study:
    """The study of a file or of overrides, tried as far as it can be without sites; raises ``FedretinaError``."""
    from server.start import check_study
    from shared.config import Study
    from shared.errors import ConfigError
    from shared.knobs import from_json

    file = Path(settings[0])
    if len(settings) > 1 or "=" in settings[0]:
        compose: Compose = context.obj
        composed = compose(settings)
    elif file.is_file():
        composed = from_json(Study, file.read_text(encoding="utf-8"))
    else:
        remedy = "Write one by fedretina coordinator study, or give overrides such as experiment=demo."
        raise ConfigError(str(file), "must be a study's file", remedy=remedy)
    check_study(composed)
    return composed


def _warn_unless_served(folder: Path) -> None:
    from server.follow import not_served

    if problem := not_served(folder):
        typer.echo(problem, err=True)


def _follow(folder: Path, own: RunFolder) -> None:
    """Follow a run to its end; the exit code says whether it finished."""
    from server.coordinator import FINISHED
    from server.follow import follow

    again = f"follow it by fedretina coordinator status {own.name} --follow --folder {folder}"
    try:
        ended = follow(folder, own, typer.echo)
    except KeyboardInterrupt:
        typer.echo(f"{own.name} goes on without this terminal; {again}", err=True)
        raise typer.Exit(130) from None
    if ended.status != FINISHED:
        raise typer.Exit(1)
    typer.echo(f"report {own.folder / 'report.html'}")
