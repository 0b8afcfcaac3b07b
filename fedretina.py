"""What can one type after ``fedretina``? The commands of each role live with the role; this file gathers them."""

from __future__ import annotations

import os
import sys

import typer

from client.cli import audit_model, site
from server.cli import coordinator, report
from shared.errors import FedretinaError
from shared.memory import keep_freed
from simulation.cli import compare, compose_study, rehearse, simulate

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


def main() -> None:
    """Run the command line; an error that its user can mend is one line on standard error, exit code 2."""
    set_environment()
    keep_freed()
    try:
        app()
    except FedretinaError as error:
        print(f"fedretina: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
