"""What does coordination cost? The time of a federated run over that of the same steps in a bare PyTorch loop.

Federated is ``run_arm``: messages, strategy, checkpoints, progress. Bare is ``run_bare``: no Flower, no message,
nothing on disk; it must end in the same weights, bit for bit. Both find the sites' data opened already. Runs alternate,
since only the ratio of neighbours means something. On a machine that does other work as well even that ratio scatters
by more than the cost in question; what each run spends outside its training steps and evaluations scatters less.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import math
import os
import pstats
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TypeVar
from unittest.mock import patch

import numpy as np
import torch
from flwr.serverapp.strategy import FedAvg
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from torch import Generator, nn

from client import privacy, work
from client.embeddings import with_embeddings
from client.evaluation import evaluate, fit_intercept
from client.gradients import draw_batches
from client.optimizers import build_optimizer, rate_factor
from client.splits import HELD_OUT, TRAIN, TUNING
from client.store import Rows, SiteStore, open_store
from client.training import train
from server.state import State, save_state
from shared import messages
from shared.checkpoints import save_arrays
from shared.config import FINETUNE, PRETRAIN, Study
from shared.errors import FedretinaError
from shared.inputs import Batch
from shared.metrics import Scores, empty_scores
from shared.models.saved import save_model
from shared.objectives.objective import Objective
from shared.objectives.registry import build_objective
from shared.objectives.supervised import SupervisedObjective
from shared.randomness import derive_seed
from shared.statistics import Statistics, merge
from shared.weights import Weights, alike, carry_encoders, read_weights, write_weights
from simulation.arms import plan
from simulation.cohorts.build import build_cohort
from simulation.compose import CONFIGS, register, to_experiment
from simulation.config import Comparison, Experiment
from simulation.federation import run_arm
from simulation.progress import Progress

_Place = tuple[str, int, str]  # of a function: file, line, name
_Entries = dict[_Place, tuple[int, int, float, float, dict[_Place, tuple[int, int, float, float]]]]
_THIS = sys.modules[__name__]
_CPU = torch.device("cpu")
_PARTS: dict[str, tuple[Callable[..., object], ...]] = {
    "training steps": (train,),
    "evaluation": (evaluate,),
    "coordinator encodes tasks, decodes replies": (
        messages.task_content,
        messages.decode_survey,
        messages.decode_update,
        messages.decode_evaluation,
    ),
    "sites decode tasks, encode replies": (
        messages.decode_task,
        messages.survey_content,
        messages.update_content,
        messages.evaluation_content,
    ),
    "strategy": (FedAvg.configure_train, FedAvg.aggregate_train),
    "checkpoints": (save_state, save_arrays, save_model),
    "sites prepare": (work._prepare, build_optimizer, read_weights, Study.__hash__),
}
T = TypeVar("T")


class BenchmarkError(FedretinaError):
    """Two runs that cannot be compared, since they did not do the same work."""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code is 0 when both ways ended in the same weights."""
    parser = argparse.ArgumentParser(
        prog="python -m simulation.benchmark",
        description="Time of the demo's federated arm over that of the same training steps in a bare PyTorch loop.",
        epilog="Anything else overrides the demo, as in fedretina simulate: pretrain.rounds=1 cohort.patients=1600 …",
    )
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs (default %(default)s)")
    options, overrides = parser.parse_known_args(arguments)
    try:
        measure(read_experiment(["experiment=demo", *overrides]), options.pairs, Console())
    except (HydraException, OmegaConfBaseException, FedretinaError) as error:
        print(f"benchmark: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def read_experiment(overrides: list[str]) -> Experiment:
    """An experiment of the federated arm alone."""
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        experiment = to_experiment(compose("config", overrides))
    return replace(experiment, comparison=Comparison())


def measure(experiment: Experiment, pairs: int, console: Console) -> None:
    """Print the time of each pair of runs, their ratios, and where a federated run's time goes."""
    torch.set_num_threads(1)
    study, disk = experiment.study, Path(experiment.simulation.cache)
    built = build_cohort(experiment.cohort, experiment.task, experiment.seed, disk, os.cpu_count() or 1)
    check_same(run_federated(study, built.sites, disk), run_bare(study, built.sites))  # both are warm from here on
    console.print("pair  federated s  bare s  ratio  outside the steps: federated s  bare s")
    ratios, costs = [], []
    for pair in range(1, pairs + 1):
        a, state = _timed(lambda: run_federated(study, built.sites, disk))
        b, weights = _timed(lambda: run_bare(study, built.sites))
        check_same(state, weights)
        ratios.append(a.total_s / b.total_s)
        costs.append((a.outside_s - b.outside_s) / a.steps_s)
        times = f"{a.total_s:>11.2f}  {b.total_s:>6.2f}  {ratios[-1]:>5.3f}  {a.outside_s:>30.3f}  {b.outside_s:>6.3f}"
        console.print(f"{pair:>4}  {times}", highlight=False)
    console.print(
        f"equal weights; ratio {_spread(ratios)}; cost outside the steps {_spread(costs)}\n",
        highlight=False,
        soft_wrap=True,
    )
    profile = cProfile.Profile()
    profile.runcall(run_federated, study, built.sites, disk)
    show_parts(pstats.Stats(profile), console)


def show_parts(profile: pstats.Stats, console: Console) -> None:
    """Print where the time of a profiled run went; the profiler makes Python code look dearer than it is."""
    entries: _Entries = profile.stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in entries.values())
    seconds = {part: _seconds_in(entries, functions) for part, functions in _PARTS.items()}
    seconds["the rest"] = total - sum(seconds.values())
    console.print("one more federated run, under the profiler")
    for part, part_s in seconds.items():
        console.print(f"{part_s:>8.3f} s  {part_s / total:>6.1%}  {part}", highlight=False)


def _seconds_in(entries: _Entries, functions: Sequence[Callable[..., object]]) -> float:
    """Time in some functions and what they call; a call from one of them to another counts once."""
    codes = [function.__code__ for function in functions]
    places = {(code.co_filename, code.co_firstlineno, code.co_name) for code in codes}
    callers = [item for place in places & entries.keys() for item in entries[place][4].items()]
    return sum(with_called for caller, (_, _, _, with_called) in callers if caller not in places)


def check_same(state: State, weights: Weights) -> None:
    """Raise ``BenchmarkError`` when the two ways did not do the same work."""
    for record in state.records:
        if record.failed:
            site, reason = next(iter(record.failed.items()))
            raise BenchmarkError(f"site {site}", "must take part in every round", value=reason)
    for name, array in weights.items():
        if not np.array_equal(array, state.weights[name]):
            remedy = "The bare loop is FedAvg over all sites: leave strategy.* and model.image.weights as they are."
            raise BenchmarkError(f"weights {name}", "must be equal in both ways", remedy=remedy)


# The federation


def run_federated(study: Study, sites: Sequence[Path], disk: Path) -> State:
    """The federated arm as ``fedretina simulate`` runs it, in a folder that is removed afterwards.

    Args:
        disk: a folder on the disk that is to be written to.
    """
    work._built_objective.cache_clear()  # a new study builds its models anew
    with TemporaryDirectory(prefix=".benchmark-", dir=disk) as run, open(os.devnull, "w") as nowhere:
        [[arm]] = plan(study, Comparison(), sites, Path(run), Path(run))
        with Progress([arm], Console(file=nowhere)) as progress:
            return run_arm(arm, "local", 1, lambda record: progress.show(arm, record))


# The lower bound: FedAvg over all sites as one would write it without a platform


def run_bare(study: Study, sites: Sequence[Path]) -> Weights:
    """The final weights of a study; the sites' held-out patients are scored as well."""
    stores = sorted((open_store(site, study) for site in sites), key=lambda store: store.name)
    statistics = Statistics.of(merge([store.survey() for store in stores]))
    pretrained: Weights = {}
    if study.pretrain.rounds:
        objective = build_objective(study, PRETRAIN, statistics)
        for number in range(1, study.pretrain.rounds + 1):
            _bare_round(objective, stores, study, PRETRAIN, number)
        pretrained = read_weights(objective)
    if not study.finetune.rounds:
        return pretrained
    supervised = build_objective(study, FINETUNE, statistics)
    write_weights(supervised, carry_encoders(pretrained, read_weights(supervised), "model."))
    return _bare_finetuning(supervised, stores, study)


def _bare_finetuning(objective: Objective, stores: Sequence[SiteStore], study: Study) -> Weights:
    """The weights with the lowest tuning loss, or the last."""
    best, best_loss, keep_best = read_weights(objective), math.inf, study.finetune.select == "best"
    for number in range(1, study.finetune.rounds + 1):
        weights = read_weights(objective)
        loss = _bare_round(objective, stores, study, FINETUNE, number)
        if number > 1 and loss < best_loss:  # of the weights with which the round began
            best, best_loss = weights, loss
    last = read_weights(objective)
    if not keep_best or _mean_loss([_scores(objective, store, study, TUNING) for store in stores]) < best_loss:
        best = last
    write_weights(objective, best)
    for store in stores:
        _scores(objective, store, study, HELD_OUT)
    return best


def _bare_round(objective: Objective, stores: Sequence[SiteStore], study: Study, stage: str, number: int) -> float:
    """Train at every site from the same weights, average; the tuning loss of the weights before."""
    weights, trained, examples, tuning = read_weights(objective), [], [], []
    for store in stores:
        write_weights(objective, weights)
        if stage == FINETUNE:
            tuning.append(_scores(objective, store, study, TUNING))
        examples.append(_bare_steps(objective, store, study, stage, number))
        trained.append(read_weights(objective))
    write_weights(objective, _average(trained, examples))
    return _mean_loss(tuning)


def _bare_steps(objective: Objective, store: SiteStore, study: Study, stage: str, number: int) -> int:
    """The steps of one site in one round; its number of examples."""
    config = study.stage(stage)
    seed = derive_seed(study.seed, stage, number, store.name)
    rows, take = _examples(with_embeddings(store, study, objective, _CPU), stage, seed)
    generator = Generator().manual_seed(seed)
    torch.manual_seed(seed)
    optimizer = build_optimizer(objective, study, config)
    batches = list(draw_batches(rows, config, np.random.default_rng(seed)))
    objective.train()
    for step, batch in enumerate(batches):
        optimizer.set_rate(rate_factor(config, (number - 1 + step / len(batches)) / config.rounds))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = objective(take(batch), generator)
        loss.backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(objective.parameters(), config.clip_norm)
        optimizer.step()
    return len(rows)


def _examples(store: SiteStore, stage: str, seed: int) -> tuple[Rows, Callable[[Rows], Batch]]:
    if stage == FINETUNE:
        return store.rows_of_cases(TRAIN), store.take_cases
    return store.rows_of_scans(TRAIN), partial(store.take_scans, random=np.random.default_rng(seed))


def _scores(objective: Objective, store: SiteStore, study: Study, split: str) -> Scores:
    assert isinstance(objective, SupervisedObjective)
    store = with_embeddings(store, study, objective, _CPU)
    objective.model.intercept = 0.0
    if study.finetune.site_intercept:
        objective.model.intercept = fit_intercept(objective.model, store, _CPU)
    return evaluate(objective.model, store, split, _CPU)


def _mean_loss(scores: Sequence[Scores]) -> float:
    total = sum(scores, empty_scores())
    return total.log_loss / total.cases if total.cases else math.inf


def _average(weights: Sequence[Weights], examples: Sequence[int]) -> Weights:
    """The mean by examples, summed in the order of the sites; what all have alike stays as it is."""
    total: Weights = {}
    for site, count in zip(weights, examples, strict=True):
        for name, array in site.items():
            part = np.multiply(array, count / sum(examples))
            total[name] = np.add(total[name], part) if name in total else part
    return total | alike(weights)


@dataclass
class _Times:
    """Of one run: in all, and in training steps and evaluations."""

    total_s: float = 0.0
    steps_s: float = 0.0

    @property
    def outside_s(self) -> float:
        return self.total_s - self.steps_s

    def counting(self, function: Callable[..., T]) -> Callable[..., T]:
        """The function, its time counted among the steps."""

        def counted(*arguments: object) -> T:
            started = time.perf_counter()
            result = function(*arguments)
            self.steps_s += time.perf_counter() - started
            return result

        return counted


def _timed(run: Callable[[], T]) -> tuple[_Times, T]:
    gc.collect()
    times = _Times()
    with ExitStack() as patches:
        for module, name in ((work, "train"), (privacy, "evaluate"), (_THIS, "_bare_steps"), (_THIS, "evaluate")):
            patches.enter_context(patch.object(module, name, times.counting(getattr(module, name))))
        started = time.perf_counter()
        result = run()
        times.total_s = time.perf_counter() - started
    return times, result


def _spread(values: Sequence[float]) -> str:
    return f"median {median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
