"""How is an experiment carried out? Build the cohort, run the arms side by side, state what was found."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import datetime
from functools import partial
from multiprocessing.managers import SyncManager
from pathlib import Path

from rich.console import Console

from server.report.page import write_report
from server.report.summary import write_summary
from server.sites import StudyError
from server.start import check_study
from server.state import RoundRecord
from server.study import is_complete
from shared.errors import CheckpointError, ConfigError
from shared.files import write_atomic
from shared.knobs import from_json, to_json
from simulation.arms import Arm, plan
from simulation.cohorts.build import Built, build_cohort
from simulation.config import CENTRALISED, Experiment
from simulation.federation import run_arm
from simulation.pooling import pool_sites
from simulation.processes import forking
from simulation.progress import Progress, work
from simulation.summary import collect_rounds, summarise

EXPERIMENT = "experiment.json"


def simulate(experiment: Experiment, command: str, console: Console) -> Path:
    """Run an experiment, or go on with an interrupted one, and return its folder.

    Raises:
        FedretinaError: settings, data or sites that do not allow it.
    """
    started = time.perf_counter()
    if experiment.resume:
        folder = Path(experiment.resume).resolve()
        experiment = read_experiment(folder)
    else:
        folder = _new_folder(experiment)
    check_study(experiment.study)
    cache = Path(experiment.simulation.cache).resolve()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = experiment.simulation.workers or cores
    console.print(f"run {folder}", highlight=False, soft_wrap=True)
    built = build_cohort(experiment.cohort, experiment.task, experiment.seed, cache, workers)
    # Only now, so that settings that cannot work leave nothing behind.
    write_atomic(folder / EXPERIMENT, to_json(experiment).encode())
    _point_latest(folder)
    pooled = folder / "pooled"
    if CENTRALISED in experiment.comparison.arms:
        pool_sites(built.sites, pooled)
    cohort_seconds = time.perf_counter() - started
    console.print(f"cohort {experiment.cohort.kind}: {len(built.sites)} sites, {cohort_seconds:.1f} s", highlight=False)
    chains = plan(experiment.study, experiment.comparison, built.sites, pooled, folder)
    run_arms(chains, experiment.simulation.backend, workers, cores, console)
    seconds = {"total": round(time.perf_counter() - started, 2), "cohort": round(cohort_seconds, 2)}
    return _conclude(experiment, chains, built, folder, command, seconds)


def _conclude(
    experiment: Experiment,
    chains: list[list[Arm]],
    built: Built,
    folder: Path,
    command: str,
    seconds: dict[str, float],
) -> Path:
    collect_rounds(chains, folder)
    summary = summarise(experiment, chains, built.truth, command, seconds)
    write_summary(folder, summary)
    write_report(folder)
    return folder


def read_experiment(folder: Path) -> Experiment:
    """The experiment of a run; raises ``CheckpointError`` when the folder holds none."""
    try:
        return from_json(Experiment, (folder / EXPERIMENT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "Name the folder of a run, such as runs/latest."
        raise CheckpointError(str(folder), f"must hold {EXPERIMENT}", remedy=remedy) from None


def _new_folder(experiment: Experiment) -> Path:
    if experiment.run.dir:
        folder = Path(experiment.run.dir).resolve()
        if (folder / EXPERIMENT).exists():
            remedy = f"Go on with it by resume={experiment.run.dir}, or choose another folder."
            raise ConfigError("run.dir", "must not hold a run yet", value=experiment.run.dir, remedy=remedy)
    else:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
        folder = Path("runs", f"{stamp}-{experiment.name}-seed{experiment.seed}").resolve()
    return folder


def _point_latest(folder: Path) -> None:
    """``runs/latest`` names the run that was started last."""
    latest = Path("runs", "latest")
    latest.parent.mkdir(exist_ok=True)
    draft = latest.with_name(f".latest-{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(os.path.relpath(folder, latest.parent.resolve()))
    os.replace(draft, latest)


def run_arms(chains: Sequence[Sequence[Arm]], backend: str, workers: int, cores: int, console: Console) -> None:
    """Run chains of arms, as many side by side as there are workers; rounds are shown as they end."""
    arms = {arm.name: arm for chain in chains for arm in chain}
    processes = min(workers, len(chains)) if backend == "local" else 1
    threads = max(cores // processes, 1)
    with Progress(list(arms.values()), console) as progress:
        for arm in arms.values():
            if is_complete(arm.study, arm.folder):
                progress.skip(arm)
        if processes == 1:
            for chain in chains:
                _run_chain(chain, backend, threads, workers, lambda name, record: progress.show(arms[name], record))
            return
        context = forking()
        manager = SyncManager(ctx=context)
        manager.start(_end_with_parent)
        with manager, ProcessPoolExecutor(processes, context, _end_with_parent) as pool:
            told: queue.Queue[tuple[str, RoundRecord]] = manager.Queue()
            # Long chains first, so that no core idles at the end.
            order = sorted(chains, key=lambda chain: -sum(map(work, chain)))
            futures = [pool.submit(_run_chain_elsewhere, chain, threads, told) for chain in order]
            _follow(futures, told, progress, arms)


def _end_with_parent() -> None:
    """A run that is killed must not leave processes that go on beside the run that resumes it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _follow(
    futures: Sequence[Future[None]],
    told: queue.Queue[tuple[str, RoundRecord]],
    progress: Progress,
    arms: dict[str, Arm],
) -> None:
    waiting = set(futures)
    while waiting or not told.empty():
        try:
            name, record = told.get(timeout=0.2)
            progress.show(arms[name], record)
        except queue.Empty:
            pass
        for future in [f for f in waiting if f.done()]:
            waiting.discard(future)
            if future.exception() is not None:
                for other in waiting:
                    other.cancel()
                future.result()


def _run_chain_elsewhere(chain: Sequence[Arm], threads: int, told: queue.Queue[tuple[str, RoundRecord]]) -> None:
    _run_chain(chain, "local", threads, 1, lambda name, record: told.put((name, record)))


def _run_chain(
    chain: Sequence[Arm], backend: str, threads: int, workers: int, tell: Callable[[str, RoundRecord], None]
) -> None:
    for arm in chain:
        try:
            run_arm(arm, backend, threads, partial(tell, arm.name), workers)
        except StudyError as error:
            if not arm.site:
                raise
            # A hospital that cannot train alone (one class, no scans) is a finding, not the end of a comparison.
            tell(
                arm.name,
                RoundRecord(stage=error.name.partition(":")[0], round=0, rounds=0, failed={arm.site: str(error)}),
            )
            return
