"""What does ``fedretina simulate`` do with its command line? Hydra composes it, errors become one line."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from shared.errors import FedretinaError
from simulation.compose import COMPOSE_ERRORS, CONFIG, CONFIGS, HYDRA, one_line, register, to_experiment
from simulation.results import show_run


def main(arguments: list[str]) -> int:
    """Run ``fedretina simulate`` with some arguments; the exit code is 0 only when all that was asked is done."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that its errors reach the handler below
    register()
    # Hydra takes no overrides after the flag.
    sys.argv = ["fedretina simulate", *sorted(arguments, key=lambda argument: argument in ("--multirun", "-m"))]
    errors: list[Exception] = []

    def job(composed: DictConfig) -> None:
        with _telling(errors):  # here, so that the other jobs of a multirun go on
            _run(composed, _swept(arguments))

    try:
        with _telling(errors):
            hydra.main(config_path=str(CONFIGS), config_name=CONFIG, version_base=HYDRA)(job)()
    except KeyboardInterrupt:
        print("fedretina: interrupted; go on with it by resume=runs/latest", file=sys.stderr)
        return 130
    return 2 if errors else 0


@contextmanager
def _telling(errors: list[Exception]) -> Iterator[None]:
    """Tell an error that its user can mend in one line, and note it."""
    try:
        yield
    except (*COMPOSE_ERRORS, FedretinaError) as error:
        print(f"fedretina: {one_line(error)}", file=sys.stderr)
        errors.append(error)


def _swept(arguments: list[str]) -> set[str]:
    """The settings to which the command line gives several values."""
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    return {override.key_or_group for override in parsed if override.is_sweep_override()}


def _run(composed: DictConfig, swept: set[str]) -> None:
    console = Console(markup=False)  # paths may hold brackets
    experiment = to_experiment(composed)
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN and experiment.run.dir:
        # One folder a job, named by what was swept.
        own = [override for override in hydra_config.overrides.task if override.split("=")[0] in swept]
        name = re.sub(r"[^\w=.,-]", "_", ",".join(own)) or str(hydra_config.job.num)
        composed.run.dir = str(Path(experiment.run.dir) / name)
        experiment = to_experiment(composed)
    command = shlex.join(["fedretina", "simulate", *hydra_config.overrides.task])
    from simulation.run import simulate  # here, so that a mistyped setting is told without waiting for torch

    folder = simulate(experiment, command, console)
    show_run(folder, console)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
