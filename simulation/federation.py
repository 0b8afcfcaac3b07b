"""How does one arm run on this machine? The server's study over a local grid, or over Flower's simulation engine."""

from __future__ import annotations

import logging
import os

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from client.app import build_app
from server.state import State
from server.study import PRETRAINED, Watch, run_study
from shared.checkpoints import load_arrays
from shared.weights import Weights
from simulation.arms import Arm
from simulation.grid import LocalGrid


def run_arm(arm: Arm, backend: str, threads: int, watch: Watch) -> State:
    """Run an arm to its end, or from where it was interrupted.

    Args:
        threads: of torch; the same number gives the same bits.
    """
    torch.set_num_threads(threads)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    pretrained = None if arm.pretrained is None else load_arrays(arm.pretrained / PRETRAINED)[0]
    if backend == "ray":
        return _run_on_ray(arm, watch, pretrained)
    return run_study(arm.study, LocalGrid(arm.trains), arm.folder, watch, pretrained, LocalGrid(arm.judges))


def _run_on_ray(arm: Arm, watch: Watch, pretrained: Weights | None) -> State:
    """The same study on Flower's own engine: a pool of processes, on one machine or a Ray cluster."""
    from flwr.simulation import run_simulation

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sites = list(dict.fromkeys((*arm.trains, *arm.judges)))
    client = build_app(lambda context: sites[int(context.node_config["partition-id"])])
    server, outcome = ServerApp(), list[State | BaseException]()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            outcome.append(run_study(arm.study, grid, arm.folder, watch, pretrained))
        except BaseException as error:  # Flower would log it and go on
            outcome.append(error)

    run_simulation(server, client, len(sites), backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
