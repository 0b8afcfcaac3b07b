"""What can one type after ``fedretina``? The commands of each role live with the role; this file gathers them."""

from __future__ import annotations

import errno
import os
import sys

import typer

from client.cli import audit_model, site
from server.cli import coordinator, report
from shared.errors import FedretinaError
from shared.memory import keep_freed
from shared.text import printable
from simulation.cli import compare, compose_study, rehearse, simulate

# What a system refuses, with what must hold and a remedy. Any other OSError is a fault of ours.
_ROOM = ("must fit on the disk", "Make room there, and run the command again.")
_OPEN = ("must be open to this user", "Run as the user who owns it, or let this user read and write there.")
REFUSALS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: ("must be on a disk that can be written", "Choose another folder, or have the disk mounted to write."),
    errno.EACCES: _OPEN,
    errno.EPERM: _OPEN,
    errno.ENOTDIR: ("must lie in folders", "There is a file on the way to it: name a folder."),
    errno.EISDIR: ("must be a file", "There is a folder of this name: name a file, or move the folder away."),
    errno.EEXIST: ("must be a folder, or not be there", "There is a file of this name: choose another one."),
    errno.ENOENT: ("must exist", "Look at the path, and at what else may have moved it."),
    errno.EIO: ("must be readable and writable", "The disk may be failing: see the log of the machine."),
}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Hospitals train one stroke model together; no scan and no record leaves a hospital.",
)
app.add_typer(site, name="site")
app.add_typer(coordinator, name="coordinator")
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
    simulate
)
app.command()(rehearse)
app.command()(report)
app.command()(compare)
app.command()(audit_model)


@app.callback()
def _hand_over(context: typer.Context) -> None:
    context.obj = compose_study  # for the coordinator's commands, which cannot import the simulation's


def set_environment() -> None:
    """What Flower and Ray read when they are imported: no telemetry, no look for updates."""
    for name in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED"):
        os.environ.setdefault(name, "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    # Flower sends arrays in pieces of 5 MiB, each of which takes several transactions; the door takes up to 16 MiB.
    os.environ.setdefault("FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", str(12 * 2**20))


def refusal(error: OSError) -> FedretinaError | None:
    """What the user can mend about a refusal of the system; None where it tells of a fault in this code."""
    if error.errno not in REFUSALS:
        return None
    rule, remedy = REFUSALS[error.errno]
    name = "what is written" if error.filename is None else printable(str(error.filename))
    return FedretinaError(name, rule, value=os.strerror(error.errno), remedy=remedy)


def main() -> None:
    """Run the command line; an error that its user can mend is one line on standard error, exit code 2."""
    set_environment()
    keep_freed()
    try:
        app()
    except (FedretinaError, OSError) as error:
        told = refusal(error) if isinstance(error, OSError) else error
        if told is None:
            raise
        print(f"fedretina: {told}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
