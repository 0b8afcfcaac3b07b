"""How does a coordinator watch a run? From another process, by the files that the run leaves after every phase."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from server.coordinator import FAILED, FINISHED, STOPPED, RunFolder, Status
from server.serve import is_served
from server.state import ROUNDS, RoundRecord

ENDED = (FINISHED, FAILED, STOPPED)
_LOOK_S = 0.5
_RESTART_S = 10.0  # a service manager may be starting it again


def rounds(run: RunFolder) -> list[RoundRecord]:
    """The rounds of a run so far."""
    file = run.folder / ROUNDS
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [RoundRecord(**json.loads(line)) for line in lines]


def describe(record: RoundRecord) -> list[str]:
    """A round in one line, and one more for each site that was left out of it."""
    left_out = [f"  {site} left out: {' '.join(reason.split())}" for site, reason in sorted(record.failed.items())]
    return [record.describe(), *left_out]


def describe_status(run: RunFolder, status: Status) -> str:
    """How far a run is, in one line."""
    stops = ", to be stopped" if run.is_to_stop and status.status not in ENDED else ""
    return f"{run.name}: {status.status}{stops}" + (f": {' '.join(status.reason.split())}" if status.reason else "")


def not_served(folder: Path) -> str:
    """What to do when no process runs the studies of a coordinator's folder; empty when one does."""
    return "" if is_served(folder) else f"nothing serves {folder}: start fedretina coordinator serve --folder {folder}"


def follow(folder: Path, run: RunFolder, tell: Callable[[str], None]) -> Status:
    """Tell every round of a run as it ends, from the first one, and every change of its status, until it has ended."""
    told, before, served_at, warned = 0, None, time.monotonic() - _RESTART_S, False
    while True:
        status = run.status  # before the rounds, so that none is missed at the end
        for record in (records := rounds(run))[told:]:
            for line in describe(record):
                tell(line)
        told = len(records)
        if status != before:
            tell(describe_status(run, status))
            before = status
        if status.status in ENDED:
            return status
        problem = not_served(folder)
        if not problem:
            served_at, warned = time.monotonic(), False
        elif not warned and time.monotonic() - served_at >= _RESTART_S:
            tell(problem)
            warned = True
        time.sleep(_LOOK_S)
