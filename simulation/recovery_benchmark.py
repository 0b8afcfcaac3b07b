"""How long until the work goes on after a process died? Each kind is killed in the middle of a round of a rehearsal.

Recovery is what the round took from the restart on, less what such a round takes when nothing dies: an upper bound,
since what had been done of the round may have to be done again. What has no parent of ours is started again after a
second, as systemd would; the rest by its parent.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich.console import Console

from server.coordinator import FINISHED, RunFolder, create_run
from server.follow import ENDED, rounds
from shared.errors import FedretinaError
from simulation.compose import compose_experiment
from simulation.rehearse import COORDINATOR, RUN, SITES, Clock, Processes, federation, overrides, processes_of

_LONGEST_S = 10.0  # that a recovery may take
_QUIET_ROUNDS, _RESTART_S, _LOOK_S, _WAIT_S = 3, 1.0, 0.02, 300.0
_KINDS = {  # by what their command line holds
    "a site's worker": ["client.worker {site}"],
    "a site": ["site start --site {site}"],
    "the study": ["server.app"],
    "the link": ["server.door"],
    "the coordinator": ["coordinator serve"],
    "all": ["client.worker", "site start", "server.app", "server.door", "coordinator serve"],
}


def main(arguments: Sequence[str]) -> int:
    """Print the seconds of each kind; 0 when all are as required."""
    parser = argparse.ArgumentParser(prog="python -m simulation.recovery_benchmark", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="of the rehearsed study (default: the demo's, three sites)")
    parser.add_argument("--times", type=int, default=2, help="that each kind is killed (default %(default)s)")
    options = parser.parse_args(arguments)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    deaths = [kind for kind in _KINDS for _ in range(options.times)]
    settings = ["pretrain.rounds=0", f"finetune.rounds={_QUIET_ROUNDS + 2 * len(deaths) + 1}", *options.overrides]
    with TemporaryDirectory() as place:
        folder = Path(place, "rehearsal")
        experiment = compose_experiment(overrides(settings))
        with federation(experiment, folder, Clock(console)) as processes:
            run = create_run(folder / COORDINATOR, experiment.study, RUN)
            quiet_s, found = measure(folder, processes, run, deaths)
            until(lambda: run.status.status in ENDED)
        if run.status.status != FINISHED:
            raise FedretinaError("the study", "must finish", value=run.status.status)
    console.print(f"a round takes {quiet_s:.1f} s when nothing dies")
    for kind in _KINDS:
        seconds = [taken for died, taken in zip(deaths, found, strict=True) if died == kind]
        console.print(f"{kind:<16} goes on after {max(seconds):5.1f} s at most, of {len(seconds)}")
    reached = max(found) <= _LONGEST_S
    console.print(f"at most {_LONGEST_S:g} s: {'reached' if reached else 'not reached'}")
    return 0 if reached else 1


def measure(folder: Path, processes: Processes, run: RunFolder, deaths: Sequence[str]) -> tuple[float, list[float]]:
    """Seconds of an undisturbed round, and those that each death cost."""
    until(lambda: len(rounds(run)) > _QUIET_ROUNDS + 1)  # after the survey and the first, which starts the workers
    quiet_s = median(record.seconds for record in rounds(run)[-_QUIET_ROUNDS:])
    site = next((folder / SITES).iterdir())
    found = []
    for kind in deaths:
        done = len(rounds(run))
        until(lambda done=done: len(rounds(run)) > done)  # type: ignore[misc]
        time.sleep(quiet_s / 2)
        kill([text.format(site=site) for text in _KINDS[kind]], folder)
        time.sleep(_RESTART_S)
        processes.start_again()
        done, started = len(rounds(run)), time.monotonic()
        until(lambda done=done: len(rounds(run)) > done)  # type: ignore[misc]
        found.append(max(time.monotonic() - started - quiet_s, 0.0))
    return quiet_s, found


def kill(texts: Sequence[str], folder: Path) -> None:
    """Kill -9 the processes of a rehearsal whose command line holds one of the texts."""
    for process, command in processes_of(folder).items():
        if any(text in command for text in texts):
            os.kill(process, signal.SIGKILL)


def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so; raises ``FedretinaError`` when it is not in time."""
    end = time.monotonic() + _WAIT_S
    while not is_so():
        if time.monotonic() > end:
            raise FedretinaError("rehearsal", f"must go on within {_WAIT_S:g} s")
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
