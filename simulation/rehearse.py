"""Does a whole federation work on this machine? The real commands, processes and connections, on a simulated cohort."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import yaml
from rich.console import Console

from server.coordinator import RUNS
from server.report.page import REPORT
from server.serve import is_served
from shared.errors import ConfigError, FedretinaError
from shared.files import write_atomic
from shared.knobs import to_json
from shared.site_folder import SiteFolder
from simulation.cohorts.build import build_cohort
from simulation.compose import compose_experiment
from simulation.config import Experiment
from simulation.run import EXPERIMENT

COORDINATOR, SITES, LOG, STUDY, RUN = "coordinator", "sites", "log", "study.json", "rehearsal"
_FEDRETINA = [sys.executable, "-m", "fedretina"]
_START_S, _END_S = 60.0, 15.0  # longest wait for a process to be there, and to be gone
_LOOK_S = 0.2


def main(arguments: Sequence[str]) -> int:
    """``fedretina rehearse``: the exit code is 0 when the study has finished; raises ``FedretinaError``."""
    experiment = compose_experiment(overrides(arguments))
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(experiment.run.dir or f"runs/{stamp}-rehearsal-{experiment.name}").resolve()
    rehearse(experiment, folder, Console(markup=False, highlight=False, soft_wrap=True))
    return 0


def overrides(arguments: Sequence[str]) -> list[str]:
    """What is composed: the demo at three hospitals, unless something else is asked for; ``sites=N`` is short."""
    given = [f"cohort.{argument}" if argument.startswith("sites=") else argument for argument in arguments]
    chosen = any(argument.partition("=")[0] in ("experiment", "cohort", "cohort.sites") for argument in given)
    preset = [] if any(argument.startswith("experiment=") for argument in given) else ["experiment=demo"]
    return [*preset, *([] if chosen else ["cohort.sites=3"]), "comparison=none", *given]


def rehearse(experiment: Experiment, folder: Path, console: Console) -> Path:
    """Run a study between a coordinator and sites that are processes of their own, and return the folder of the run.

    Args:
        folder: new; gets ``coordinator/``, ``sites/``, ``log/`` and the study.

    Raises:
        FedretinaError: settings or data that do not allow it, a command that fails, a study that does not finish.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError("run.dir", "must be a new folder", value=str(folder), remedy="Choose another one.")
    console.print(f"run {folder}")
    clock = Clock(console)
    with federation(experiment, folder, clock) as processes:
        processes.follow(console, "coordinator", "run", str(folder / STUDY), "--name", RUN, *_coordinator(folder))
        clock.tell("study")
    clock.tell("stopping")
    run = folder / COORDINATOR / RUNS / RUN
    console.print(f"report {run / REPORT}")
    return run


@contextmanager
def federation(experiment: Experiment, folder: Path, clock: Clock) -> Iterator[Processes]:
    """A coordinator and the sites of a cohort, who have approved the experiment's study and wait for it.

    Args:
        folder: new.
    """
    cache = Path(experiment.simulation.cache).resolve()
    built = build_cohort(experiment.cohort, experiment.task, experiment.seed, cache, os.cpu_count() or 1)
    write_atomic(folder / EXPERIMENT, to_json(experiment).encode())
    write_atomic(folder / STUDY, to_json(experiment.study).encode())
    sites = [borrow_site(site, folder / SITES / site.name) for site in built.sites]
    clock.tell(f"cohort of {len(sites)} sites")
    processes = Processes(folder)
    try:
        port = str(free_port())
        processes.do("coordinator", "init", "--address", "127.0.0.1", "--port", port, *_coordinator(folder))
        for site in sites:
            name, here = SiteFolder(site).name, ["--site", str(site)]
            processes.do("site", "keys", *here)
            processes.do("coordinator", "enrol", name, str(site / "state/keys/site.pub"), *_coordinator(folder))
            processes.do("site", "join", str(folder / COORDINATOR / "kits" / f"{name}.json"), *here)
        clock.tell("keys, enrolment, kits")
        for site in sites:
            processes.do("site", "review", str(folder / STUDY), "--site", str(site))
            processes.do("site", "approve", str(folder / STUDY), "--site", str(site))
        clock.tell("approvals")
        processes.start("coordinator", "serve", *_coordinator(folder))
        processes.wait_for(lambda: is_served(folder / COORDINATOR))
        for site in sites:
            processes.start("site", "start", "--site", str(site))
        yield processes
    finally:
        processes.end()


def _coordinator(folder: Path) -> list[str]:
    return ["--folder", str(folder / COORDINATOR)]


def borrow_site(source: Path, site: Path) -> Path:
    """A site folder with the data of another, and with a state and settings of its own."""
    site.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.name not in ("state", "site.yaml"):
            (site / entry.name).symlink_to(entry.resolve())
    own = source / "site.yaml"
    settings = (yaml.safe_load(own.read_text(encoding="utf-8")) or {}) if own.exists() else {}
    # One thread a site: the sites share this machine, and the same number gives the same bits.
    (site / "site.yaml").write_text(yaml.safe_dump(settings | {"threads": 1}), encoding="utf-8")
    return site


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def processes_of(folder: Path) -> dict[int, str]:
    """The command lines, by process id, of those other processes of this machine that name a folder."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_text(errors="replace").replace("\0", " ")
            except OSError:  # it has ended
                continue
            if str(folder) in command:
                found[int(entry.name)] = command
    return found


class Clock:
    """Says how long each phase took."""

    def __init__(self, console: Console) -> None:
        self._console, self._since = console, time.perf_counter()

    def tell(self, phase: str) -> None:
        """Say it of the phase that has just ended."""
        now = time.perf_counter()
        self._console.print(f"{now - self._since:7.1f} s  {phase}")
        self._since = now


class Processes:
    """The commands of a rehearsal, each with what it said in a file below ``log``."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._log = folder, folder / LOG
        self._log.mkdir()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[str, ...]] = {}

    def do(self, *command: str) -> None:
        """Run a command to its end; raises ``FedretinaError`` when it is refused."""
        done = subprocess.run([*_FEDRETINA, *command], cwd=self._folder, capture_output=True, text=True, check=False)
        with (self._log / "commands.log").open("a", encoding="utf-8") as stream:
            stream.write(f"$ fedretina {' '.join(command)}\n{done.stdout}{done.stderr}")
        if done.returncode:
            raise FedretinaError(f"fedretina {' '.join(command[:2])}", "must be done", value=done.stderr.strip()[-300:])

    def start(self, *command: str) -> None:
        """Let a command run beside the others."""
        name = f"{command[0]}-{command[1]}-{Path(command[-1]).name}"
        with (self._log / f"{name}.log").open("ab") as stream:
            process = subprocess.Popen(
                [*_FEDRETINA, *command], cwd=self._folder, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
        self._running[name], self._commands[name] = process, command

    def start_again(self) -> None:
        """Start the commands anew that have ended, as systemd does."""
        for name, process in list(self._running.items()):
            if process.poll() is not None:
                self.start(*self._commands[name])

    def wait_for(self, is_there: Callable[[], bool]) -> None:
        """Wait until something is there that a command makes; raises ``FedretinaError`` when it is not in time."""
        until = time.monotonic() + _START_S
        while not is_there():
            self._check()
            if time.monotonic() > until:
                raise FedretinaError("rehearsal", f"must start within {_START_S:g} s", remedy=f"See {self._log}.")
            time.sleep(_LOOK_S)

    def follow(self, console: Console, *command: str) -> None:
        """Run a command to its end and show what it says; raises ``FedretinaError`` unless its exit code is 0."""
        file = self._log / "run.log"
        with file.open("wb") as stream:
            process = subprocess.Popen([*_FEDRETINA, *command], cwd=self._folder, stdout=stream, stderr=stream)
        shown = 0
        try:
            ended = False
            while not ended:
                ended = process.poll() is not None  # before the lines, so that none is missed
                lines = file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()  # whole lines
                for line in lines[shown:]:
                    console.print(f"  {line}")
                shown = len(lines)
                self._check()
                time.sleep(_LOOK_S)
        finally:
            _end([process])
        if process.returncode:
            raise FedretinaError("the study", "must finish", remedy=f"See {self._log} and the logs of the sites.")

    def end(self) -> None:
        """Stop what still runs."""
        _end(list(self._running.values()))

    def _check(self) -> None:
        for name, process in self._running.items():
            if process.poll() is not None:
                remedy = f"See {self._log / name}.log."
                raise FedretinaError(name, "must go on", value=process.returncode, remedy=remedy)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to stop, and make those that do not."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + _END_S
    for process in processes:
        try:
            process.wait(max(until - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
