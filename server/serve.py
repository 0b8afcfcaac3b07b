"""What keeps a coordinator going? A supervisor of two processes: the link to the sites, and the study that is on.

Either may be killed at any time, and so may this one: what is unfinished is found in the folder and goes on.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from server.coordinator import FAILED, FINISHED, RUNNING, STOPPED, WAITING, RunFolder, read_settings, runs
from server.state import phases_done
from shared.code import ROOT
from shared.errors import ConfigError

LOCK = "lock"
_LOOK_S = 0.3
_LOCK_TRIES = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_STEADY_S = 10.0  # after this long without an end, earlier ends of the link count no more
_MOST_ENDS = 20
_END_S = 10.0  # what a process has to end well

log = logging.getLogger(__name__)


def serve(folder: Path, stop: threading.Event) -> None:
    """Serve sites and run studies until ``stop`` is set; raises ``ConfigError`` when another process does."""
    settings = read_settings(folder)
    with _lock(folder):
        log.info("serving %s to sites at %s", folder, settings.public)
        link = _Child("link", "server.door", str(folder.resolve()))
        study: _Child | None = None
        run: RunFolder | None = None
        try:
            while not stop.wait(_LOOK_S):
                link.keep(link.seconds > _STEADY_S)
                if run is None:
                    run = next((r for r in runs(folder) if r.status.status in (WAITING, RUNNING)), None)
                    if run is not None:
                        study = _Child(run.name, "server.app", str(folder.resolve()), run.name)
                if run is not None and study is not None and _follow(run, study):
                    run = study = None
        finally:
            for child in (study, link):
                if child is not None:
                    child.end()


def _follow(run: RunFolder, study: _Child) -> bool:
    """Keep the process of a run going; True when there is nothing more to do for it."""
    if run.is_to_stop:
        study.end()
        run.become(STOPPED)
        log.info("%s: stopped", run.name)
        return True
    if study.code is not None and run.status.status in (FINISHED, FAILED):
        log.info("%s: %s", run.name, run.status.status)
        return True
    if study.ends >= _MOST_ENDS:
        run.become(FAILED, f"its process ended {study.ends} times, last with {study.code}; see the log")
        return True
    if run.status.status == WAITING:  # after that the study's process says how far it is
        run.become(RUNNING)
    study.keep(study.has_moved(phases_done(run.folder)))
    return False


def is_served(folder: Path) -> bool:
    """Does a process serve this coordinator's folder now?"""
    file = folder / LOCK
    if not file.exists():
        return False
    with file.open("a") as stream:
        return not _took(stream)  # a lock that was to be had is given back as the file closes


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with (folder / LOCK).open("a") as stream:
        for _ in range(_LOCK_TRIES):  # whoever asks ``is_served`` holds the lock for a moment
            if _took(stream):
                break
            time.sleep(_LOOK_S)
        else:
            raise ConfigError(str(folder), "must be served by one process only", remedy="Stop the other one.")
        yield


def _took(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Child:
    """A process of ours that is started again when it ends, ever more patiently while nothing comes of it."""

    def __init__(self, name: str, module: str, *arguments: str) -> None:
        self.name, self.command = name, [sys.executable, "-m", module, *arguments, str(os.getpid())]
        self.ends, self._pause, self._seen = 0, _FIRST_PAUSE_S, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._not_before = 0.0
        self._last_code: int | None = None

    @property
    def code(self) -> int | None:
        """The exit code of the process that ended last; None while one runs."""
        return self._last_code if self._process is None else self._process.poll()

    @property
    def seconds(self) -> float:
        """For how long it has been there; 0 while it is not."""
        return 0.0 if self._process is None or self._process.poll() is not None else time.monotonic() - self._started

    def has_moved(self, done: int) -> bool:
        """Has more been done than when this was asked last?"""
        before, self._seen = self._seen, done
        return done > before

    def keep(self, did_well: bool) -> None:
        """Start it when it is not there; that it did well lets earlier ends be forgotten."""
        if did_well:
            self.ends, self._pause = 0, _FIRST_PAUSE_S
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self.ends += 1
            self._not_before = now + self._pause
            self._last_code = self._process.returncode
            log.warning("%s ended with %s; started again in %.1f s", self.name, self._last_code, self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)
            self._process = None
        if self._process is None and now >= self._not_before:
            # From the folder of the code: what the present one has by the same names must not be run in its place.
            self._process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, cwd=ROOT)
            self._started = now

    def end(self) -> None:
        """Ask it to stop, and make it when it does not."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
