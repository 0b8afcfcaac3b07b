"""How is a study run over the network? A process of its own runs it on the link to the sites and states the results."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from types import FrameType

from flwr.server.superlink.linkstate import LinkState

from server.coordinator import DATABASE, FAILED, FINISHED, LOG, RUNNING, RUNS, RunFolder
from server.enrolment import valid_enrolments
from server.grid import running_grid
from server.link import open_link_state, site_names
from server.report.page import write_report
from server.report.summary import arm_figures, inputs_name, site_rows, study_summary, write_summary
from server.sites import StudyError
from server.state import RoundRecord, State
from server.study import run_study
from shared.config import Study
from shared.logs import log_to, quiet_flower
from shared.memory import keep_freed
from shared.processes import end_with_parent

_LINK_S, _LOOK_S = 30.0, 0.1  # a site whose key was dismissed before is never let in

log = logging.getLogger("server.app")  # also where this is the main module


def run(folder: Path, name: str) -> int:
    """Run a study of a coordinator's folder to its end; the exit code is 0 when it has finished."""
    own = RunFolder(folder / RUNS / name)
    study, state = own.study, open_link_state(folder / DATABASE)
    started = time.perf_counter()

    def watch(record: RoundRecord) -> None:
        log.info("%s: %s", name, record.describe())

    def notice(text: str) -> None:
        own.become(RUNNING, text)

    _wait_for_link(folder, state)
    try:
        with running_grid(state) as grid:
            final = run_study(study, grid, own.folder, watch, enrolled=lambda: site_names(state), notice=notice)
    except StudyError as error:
        own.become(FAILED, str(error))
        log.error("%s failed: %s", name, error)
        return 1
    _conclude(own, study, final)
    own.become(FINISHED)
    peak_mb = getrusage(RUSAGE_SELF).ru_maxrss / 1000
    log.info("%s finished; this process took %.1f s and %.0f MB", name, time.perf_counter() - started, peak_mb)
    return 0


def _wait_for_link(folder: Path, state: LinkState) -> None:
    """Until the link, which was started beside this process, has let in who is enrolled: else nobody seems to be."""
    until = time.monotonic() + _LINK_S
    enrolled = {enrolment.site for enrolment in valid_enrolments(folder)}
    while not enrolled <= set(site_names(state).values()) and time.monotonic() < until:
        time.sleep(_LOOK_S)


def _conclude(own: RunFolder, study: Study, final: State) -> None:
    """Write the summary and the report of a study that has ended."""
    seconds = sum(record.seconds for record in final.records)
    command = f"fedretina coordinator run --name {own.name}"
    summary = study_summary(study, command, {"total": round(seconds, 2)}) | {"sites": site_rows(final)}
    if final.evaluations:
        summary["arms"] = {"federated": {inputs_name(study): arm_figures(final.evaluations, seconds)}}
    write_summary(own.folder, summary)
    write_report(own.folder)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # the grid ends its run on the way out


def main() -> None:
    """``python -m server.app FOLDER RUN PARENT``, a child of ``coordinator serve``."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    keep_freed()
    end_with_parent(int(sys.argv[3]))
    signal.signal(signal.SIGTERM, _stop)
    log_to()
    log_to(folder / LOG)
    quiet_flower()
    os.environ["OMP_NUM_THREADS"] = "1"  # of torch, should it be needed: the coordinator trains nothing
    try:
        code = run(folder, name)
    except Exception:
        log.exception("%s was interrupted", name)
        code = 2
    raise SystemExit(code)


if __name__ == "__main__":
    main()
