"""How does a test get a real federation? A coordinator and sites as processes, over TLS, kept going as systemd does."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

from client.approvals import APPROVED, decide
from client.membership import PUBLIC_KEY, join, make_keys, own_key
from server import coordinator
from server.coordinator import DATABASE, RunFolder, Settings, create_run, write_kit
from server.enrolment import enrol
from server.follow import ENDED, rounds
from server.link import open_link_state
from server.state import RoundRecord
from shared.config import Study
from shared.site_folder import SiteFolder
from simulation.rehearse import borrow_site, free_port, processes_of
from tests.e2e.commands import command as typed

_RESTART_S = 0.2
_END_S = 20.0


@lru_cache(maxsize=1)
def _empty_database() -> bytes:
    """Laid out once for all federations: Flower takes a second for it."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, DATABASE)
        open_link_state(database)
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return database.read_bytes()


class Federation:
    """A coordinator's folder, site folders that have joined it, and their processes while ``with`` it.

    Args:
        folder: new.
        sources: site folders, which stay as they are.
        environment: of the processes, besides the test's own.
    """

    def __init__(self, folder: Path, sources: Sequence[Path], environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.coordinator = folder, folder / "coordinator"
        self.environment = {**os.environ, **(environment or {})}
        coordinator.init(self.coordinator, Settings(port=free_port()))
        (self.coordinator / DATABASE).touch(mode=0o600)
        (self.coordinator / DATABASE).write_bytes(_empty_database())
        self.sites = [borrow_site(source, folder / "sites" / source.name) for source in sources]
        for site in self.sites:
            self.admit(site)
        self._kept: list[_Kept] = []

    def admit(self, site: Path, days: int = 1) -> None:
        """Make a site's keys, enrol it, and let it join."""
        make_keys(site)
        enrolment = enrol(self.coordinator, SiteFolder(site).name, (site / PUBLIC_KEY).read_bytes(), days)
        join(site, write_kit(self.coordinator, enrolment))

    def approve(self, study: Study, sites: Sequence[Path] | None = None) -> None:
        """Let sites, or all of them, approve a study."""
        for site in self.sites if sites is None else sites:
            decide(site, own_key(site), study, APPROVED, days=1)

    def __enter__(self) -> Self:
        self.start("coordinator", "serve", "--folder", str(self.coordinator))
        for site in self.sites:
            self.start("site", "start", "--site", str(site))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for kept in self._kept:
            kept.stop()
        for kept in self._kept:
            kept.join()

    def start(self, *command: str) -> _Kept:
        """A command that is started again whenever it ends."""
        log = self.folder / f"{command[0]}-{Path(command[-1]).name}.log"
        kept = _Kept(typed(*command), log, self.environment)
        self._kept.append(kept)
        return kept

    def wait_for_sites(self, timeout_s: float = 120.0) -> None:
        """Wait until every site has been connected."""
        logs, until = [self.folder / f"site-{site.name}.log" for site in self.sites], time.monotonic() + timeout_s
        while not all(b"connected to" in log.read_bytes() for log in logs):
            assert time.monotonic() < until, f"see {self.folder}"
            time.sleep(0.05)

    def run(self, study: Study, timeout_s: float = 400.0) -> RunFolder:
        """Run a study to its end."""
        run = create_run(self.coordinator, study)
        self.wait(run, lambda: run.status.status in ENDED, timeout_s)
        return run

    def wait(self, run: RunFolder, is_so: Callable[[], bool], timeout_s: float = 240.0) -> list[RoundRecord]:
        """Wait until something is so; the rounds of the run by then."""
        until = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < until, f"{run.status} after {rounds(run)}; see {self.folder}"
            time.sleep(0.05)
        return rounds(run)

    def processes(self) -> list[int]:
        """Ids of all processes of this federation: those that are kept, and their children."""
        return list(processes_of(self.folder))


class _Kept:
    """A process that is started again a second after it has ended."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.command, self.log, self.environment = command, log, environment
        self._stop = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as stream:
            return subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=dict(self.environment)
            )

    def _keep(self) -> None:
        while not self._stop.is_set():
            if self._process.poll() is not None and not self._stop.wait(_RESTART_S):
                self._process = self._start()
            self._stop.wait(0.05)

    def stop(self) -> None:
        """Ask it to end, for good."""
        self._stop.set()
        self._thread.join()
        self._process.terminate()

    def join(self) -> None:
        """Wait until it has ended."""
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
