"""How does one arm run on this machine? The server's study over a local grid, or over Flower's simulation engine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from client.app import build_app
from server.state import State
from server.study import PRETRAINED, Watch, run_study
from shared.checkpoints import load_arrays
from shared.logs import quiet_flower
from shared.weights import Weights
from simulation.arms import Arm
from simulation.grid import LocalGrid

SITES_LOG = "sites.log"
_NODES_TIMEOUT_S = 60.0


def run_arm(arm: Arm, backend: str, threads: int, watch: Watch, workers: int = 1) -> State:
    """Run an arm to its end, or from where it was interrupted.

    Args:
        threads: of torch; the same number gives the same bits.
        workers: processes of Flower's own engine, each of which is one site after another.
    """
    torch.set_num_threads(threads)
    quiet_flower()
    logging.getLogger("server.study").setLevel(logging.ERROR)  # whoever watches hears of sites that are left out
    pretrained = None if arm.pretrained is None else load_arrays(arm.pretrained / PRETRAINED)[0]
    with _logs_of_sites(arm.folder / SITES_LOG):
        if backend == "ray":
            return _run_on_ray(arm, watch, pretrained, workers)
        return run_study(arm.study, LocalGrid(arm.trains), arm.folder, watch, pretrained, LocalGrid(arm.judges))


@contextmanager
def _logs_of_sites(file: Path) -> Iterator[None]:
    """Keep what sites would write to their own logs and not send: in a simulation the researcher is every site."""
    file.parent.mkdir(parents=True, exist_ok=True)
    logger, handler = logging.getLogger("client"), logging.FileHandler(file, delay=True)
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.propagate = before


def _run_on_ray(arm: Arm, watch: Watch, pretrained: Weights | None, workers: int) -> State:
    """The same study on Flower's own engine: a pool of processes, on one machine or a Ray cluster."""
    from flwr.simulation import run_simulation

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    client = build_app(lambda context: arm.trains[int(context.node_config["partition-id"])])
    server, outcome = ServerApp(), list[State | BaseException]()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            _await_nodes(grid, len(arm.trains))
            judges = None if arm.judges == arm.trains else LocalGrid(arm.judges)
            outcome.append(run_study(arm.study, grid, arm.folder, watch, pretrained, judges))
        except BaseException as error:  # Flower would log it and go on
            outcome.append(error)

    resources = {"num_cpus": 1, "num_gpus": 0.0}
    engine: dict[str, dict[str, Any]] = {"client_resources": {**resources}, "init_args": {"num_cpus": workers}}
    run_simulation(server, client, len(arm.trains), backend_config=engine)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _await_nodes(grid: Grid, count: int) -> None:
    """Flower's engine starts the server before all nodes are there; whoever is not by then is left out."""
    deadline = time.monotonic() + _NODES_TIMEOUT_S
    while len(list(grid.get_node_ids())) < count and time.monotonic() < deadline:
        time.sleep(0.1)
