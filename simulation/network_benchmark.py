"""What does a round cost over the network? A rehearsal against as large a model on stock Flower, on loopback.

Stock Flower is what its documentation starts with: ``Strategy.start`` with FedAvg, a SuperLink and SuperNodes with the
default isolation. Its clients send the weights back as they came; of our rounds the time is taken off for which the
slowest site trained and scored.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

from rich.console import Console

from server.state import ROUNDS
from shared.config import FINETUNE
from shared.errors import FedretinaError
from simulation.compose import compose_experiment
from simulation.rehearse import free_port, overrides, rehearse

_WAIT_S = 600.0
_BIN = Path(sys.executable).parent
_PYPROJECT = """
[project]
name = "stock"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "stock"
[tool.flwr.app.components]
serverapp = "stock.server:app"
clientapp = "stock.client:app"
[tool.flwr.app.config]
rounds = 1
sites = 1
width = 1
times = ""
"""
_SERVER = """
import time
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

class Timed(FedAvg):
    def configure_train(self, *arguments, **named):
        with open(self.times, "a") as stream:
            stream.write(f"{time.time()}\\n")
        return super().configure_train(*arguments, **named)

app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    sites, width = config["sites"], config["width"]
    weights = {f"layer{i}": np.random.default_rng(i).normal(size=(width, width)).astype(np.float32) for i in range(4)}
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    strategy.times = config["times"]
    strategy.start(grid, ArrayRecord({n: Array(a) for n, a in weights.items()}), num_rounds=config["rounds"])
    with open(strategy.times, "a") as stream:
        stream.write(f"{time.time()}\\n")
"""
_CLIENT = """
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    arrays = message.content.array_records["arrays"]
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
"""


def main(arguments: Sequence[str]) -> int:
    """Measure and print both; the exit code is 0 when both ran to their end."""
    parser = argparse.ArgumentParser(prog="python -m simulation.network_benchmark", description=__doc__)
    parser.add_argument("--sites", type=int, default=3, help="default %(default)s")
    parser.add_argument("--parameters", type=float, default=10e6, help="of the model (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each run (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each, in turn (default %(default)s)")
    options = parser.parse_args(arguments)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    sizes = options.sites, options.parameters, options.rounds
    ways: dict[str, Callable[[Path, int, float, int], list[float]]] = {
        "fedretina": rounds_of_ours,
        "stock Flower": rounds_of_stock,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    ratios = []
    for pair in range(1, options.pairs + 1):
        with tempfile.TemporaryDirectory() as folder:
            found = {name: run(Path(folder, name.split()[0]), *sizes) for name, run in ways.items()}
        for name, rounds in found.items():
            seconds[name] += rounds
        ratios.append(median(found["fedretina"]) / median(found["stock Flower"]))
        console.print(f"pair {pair} of {options.pairs}: ratio {ratios[-1]:.3f}")
    for name, all_rounds in seconds.items():
        spread = f"({min(all_rounds):.2f} to {max(all_rounds):.2f})"
        console.print(f"{name:<14} {median(all_rounds):6.2f} s a round besides training  {spread}")
    console.print(f"ratio          {median(ratios):6.3f}  ({min(ratios):.3f} to {max(ratios):.3f})")
    return 0


def rounds_of_ours(folder: Path, sites: int, parameters: float, rounds: int) -> list[float]:
    """Seconds of each round of a rehearsal, without the sites' work, of a clinical model with so many parameters."""
    settings = [
        f"sites={sites}",
        "cohort.patients=300",
        "cohort.labelled=1.0",
        "modalities=[clinical]",
        f"model.clinical.hidden=[{round(parameters**0.5)},{round(parameters**0.5)}]",
        "pretrain.rounds=0",
        f"finetune.rounds={rounds + 1}",
        "finetune.batch_size=1000",
        f"simulation.cache={folder.parent / 'cohorts'}",
    ]
    with Path(os.devnull).open("w") as nowhere:
        run = rehearse(compose_experiment(overrides(settings)), folder, Console(file=nowhere))
    records = [json.loads(line) for line in (run / ROUNDS).read_text(encoding="utf-8").splitlines()]
    # The first round starts the workers.
    return [record["seconds"] - record["site_seconds"] for record in records if record["stage"] == FINETUNE][1:]


def rounds_of_stock(folder: Path, sites: int, parameters: float, rounds: int) -> list[float]:
    """Seconds of each round of stock Flower with as many parameters in four layers."""
    package = folder / "app" / "stock"
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text(_PYPROJECT)
    for name, text in (("__init__", ""), ("server", _SERVER), ("client", _CLIENT)):
        (package / f"{name}.py").write_text(text)
    times, port, home = folder / "times", free_port(), folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    config = f"rounds={rounds + 1} sites={sites} width={round((parameters / 4) ** 0.5)} times='{times}'"
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port"]
    with _running(folder, home, [link, *([*node, str(free_port())] for _ in range(sites))]) as environment:
        time.sleep(8.0)
        command = [str(_BIN / "flwr"), "run", str(package.parent), "here", "--run-config", config]
        started = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        until = time.monotonic() + _WAIT_S
        while not times.exists() or len(times.read_text().split()) < rounds + 2:
            if time.monotonic() > until or started.returncode:
                raise FedretinaError("stock Flower", "must run", value=(started.stdout + started.stderr)[-300:])
            time.sleep(0.5)
    stamps = [float(stamp) for stamp in times.read_text().split()]
    return [after - before for before, after in pairwise(stamps)][1:]


@contextmanager
def _running(folder: Path, home: Path, commands: Sequence[Sequence[str]]) -> Iterator[dict[str, str]]:
    environment = {
        **os.environ,
        "PATH": f"{_BIN}:{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "log").open("wb") as stream:
            for command in commands:
                whole = [str(_BIN / command[0]), *command[1:]]
                processes.append(subprocess.Popen(whole, env=environment, stdout=stream, stderr=stream))
                time.sleep(2.0)
        yield environment
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(15.0)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
