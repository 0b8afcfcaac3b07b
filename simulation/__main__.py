"""What does ``fedretina simulate`` do with its command line? Hydra composes it, errors become one line."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from shared.errors import FedretinaError
from simulation.compose import CONFIGS, register, to_experiment
from simulation.results import show_run
from simulation.run import simulate


def main(arguments: list[str]) -> int:
    """Run ``fedretina simulate`` with some arguments; the exit code is 0 only when all that was asked is done."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that its errors reach the handler below
    register()
    sys.argv = ["fedretina simulate", *arguments]
    try:
        _run()
    except (HydraException, OmegaConfBaseException, FedretinaError) as error:
        print(f"fedretina: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fedretina: interrupted; go on with it by resume=runs/latest", file=sys.stderr)
        return 130
    return 0


@hydra.main(config_path=str(CONFIGS), config_name="config", version_base="1.3")
def _run(composed: DictConfig) -> None:
    console = Console()
    experiment = to_experiment(composed)
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN and experiment.run.dir:
        # One folder a job, named by what was swept.
        name = hydra_config.job.override_dirname or str(hydra_config.job.num)
        composed.run.dir = str(Path(experiment.run.dir) / name)
        experiment = to_experiment(composed)
    command = shlex.join(["fedretina", "simulate", *hydra_config.overrides.task])
    folder = simulate(experiment, command, console)
    show_run(folder, console)


def _one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's errors run over several lines; ours are one."""
    if isinstance(error, FedretinaError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith(("full_key", "object_type", "reference_type")))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
