"""What does a round on sums cost? Its time over that of the plain round, for 8 sites and 11 million weights.

Both are rounds of the federated study as ``fedretina simulate`` runs it, one after the other in pairs, since only the
ratio of neighbours means something. All sites are in one process here: their masks are made one after the other, as
nowhere else. Once with a pass of training over each site's scans, and once without any, where nothing but messages,
sums and masks is left.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from rich.console import Console

from client import privacy, work
from client.training import Trained
from server.state import State
from server.study import run_study
from shared.config import FINETUNE, SecAgg, Study
from shared.errors import FedretinaError
from shared.logs import quiet_flower
from shared.metrics import empty_scores
from simulation.benchmark import read_experiment
from simulation.cohorts.build import build_cohort
from simulation.grid import LocalGrid

STUDY = (
    "model=resnet18",
    "modalities=[oct]",
    "images.height=64",
    "images.width=64",
    "cohort.image_height=64",
    "cohort.image_width=64",
    "pretrain.rounds=0",
    "cohort.labelled=1.0",
    "task.horizon_days=3650",  # so that every hospital has both classes
    "finetune.select=last",
    "strategy.norm_limit=0",
)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code is 0 when all sites took part in every round."""
    parser = argparse.ArgumentParser(prog="python -m simulation.secure_aggregation_benchmark", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of a run (default %(default)s)")
    parser.add_argument("--sites", type=int, default=8, help="hospitals (default %(default)s)")
    parser.add_argument("--patients", type=int, default=320, help="of all hospitals (default %(default)s)")
    options = parser.parse_args(arguments)
    quiet_flower()
    cohort = [f"cohort.sites={options.sites}", f"cohort.patients={options.patients}"]
    try:
        measure([*STUDY, *cohort, f"finetune.rounds={options.rounds}"], options.pairs, Console(highlight=False))
    except FedretinaError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    return 0


def measure(overrides: list[str], pairs: int, console: Console) -> None:
    """Print the time of a round, plain and on sums, and their ratio, with and without training."""
    experiment = read_experiment(overrides)
    cores, cache = os.cpu_count() or 1, Path(experiment.simulation.cache)
    torch.set_num_threads(cores)
    built = build_cohort(experiment.cohort, experiment.task, experiment.seed, cache, cores)
    plain = experiment.study
    summed = replace(plain, secure_aggregation=SecAgg())
    size = sum(array.size for array in run(plain, built.sites, cache).weights.values())  # the sites' data is open now
    console.print(f"{len(built.sites)} sites, {size / 1e6:.1f} million weights, {cores} cores")
    console.print("training  pair  plain s  sums s  ratio")
    for trains in (True, False):
        ratios = []
        for pair in range(1, pairs + 1):
            seconds = [round_seconds(run(study, built.sites, cache, trains)) for study in (plain, summed)]
            ratios.append(seconds[1] / seconds[0])
            kind = "one pass" if trains else "none"
            console.print(f"{kind:<8}  {pair:>4}  {seconds[0]:>7.2f}  {seconds[1]:>6.2f}  {ratios[-1]:>5.2f}")
        console.print(f"{kind:<8}  ratio {median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


def run(study: Study, sites: Sequence[Path], disk: Path, trains: bool = True) -> State:
    """A study in a folder that is removed afterwards.

    Args:
        trains: else the sites send what they received, at once.
    """
    with TemporaryDirectory(prefix=".benchmark-", dir=disk) as folder, ExitStack() as patches:
        if not trains:
            patches.enter_context(patch.object(work, "train", lambda _, rows, *rest: Trained(len(rows), 0, 0.0)))
            patches.enter_context(patch.object(privacy, "evaluate", lambda *arguments: empty_scores()))
        return run_study(study, LocalGrid(sites), Path(folder))


def round_seconds(state: State) -> float:
    """Of a training round, in the middle.

    Raises:
        FedretinaError: a site was left out, so that rounds cannot be compared.
    """
    for record in state.records:
        for site, reason in record.failed.items():
            raise FedretinaError(f"site {site}", "must take part in every round", value=reason)
    return median(record.seconds for record in state.records if record.stage == FINETUNE)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
