"""Does a run survive the death of any of its processes anywhere, and end in the very same bits?"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from server.coordinator import FINISHED, create_run
from server.follow import ENDED, rounds
from server.study import run_study
from shared.config import Study
from simulation.grid import LocalGrid
from tests.e2e.federation import Federation
from tests.factories import make_study
from tests.server.federations import assert_same_outcome, clinical_sites, image_sites
from tests.sums import summed_study

KILLS = Path(__file__).with_name("kills")
Place = tuple[str, str, str, int, str]  # kind of process, module, function, call, before or after

STUDY_PROCESS: list[Place] = [
    ("server.app", "server.sites", "Sites.gather", 1, "before"),  # before the survey is sent
    ("server.app", "server.state", "save_state", 1, "before"),
    ("server.app", "server.grid", "LinkGrid._push", 1, "after"),  # one site asked, the others not
    ("server.app", "server.grid", "LinkGrid._complete", 1, "before"),  # an update is there
    ("server.app", "server.aggregation", "keep_update", 1, "after"),
    ("server.app", "server.aggregation", "aggregate", 1, "before"),
    ("server.app", "server.aggregation", "aggregate", 1, "after"),
    ("server.app", "shared.files", "flush", 1, "before"),  # the checkpoint's draft is written, not in its place
    ("server.app", "shared.files", "flush", 2, "before"),  # it is in its place, not yet durable
    ("server.app", "server.state", "save_state", 1, "after"),
    ("server.app", "server.study", "_Run._evaluate", 1, "before"),  # between stages
    ("server.app", "shared.models.saved", "save_model", 1, "after!"),
    ("server.app", "server.report.summary", "write_summary", 1, "before"),
]
LINK_PROCESS: list[Place] = [
    ("server.door", "flwr.superlink.servicer.fleet.fleet_handlers", "pull_messages", 3, "after"),
    ("server.door", "flwr.superlink.servicer.fleet.fleet_handlers", "pull_object", 2, "before"),
    ("server.door", "flwr.superlink.servicer.fleet.fleet_handlers", "confirm_message_received", 1, "before"),
    ("server.door", "flwr.superlink.servicer.fleet.fleet_handlers", "push_messages", 1, "after"),
    ("server.door", "flwr.superlink.servicer.fleet.fleet_handlers", "push_object", 2, "before"),
]
NODE_PROCESS: list[Place] = [
    ("site start", "client.parcels", "Draft.commit", 1, "before"),  # while receiving
    ("site start", "client.connection", "Connection.confirm", 1, "before"),
    ("site start", "client.connection", "Connection.pull", 1, "after"),
    ("site start", "client.connection", "Connection.push", 1, "before"),
    ("site start", "client.connection", "Connection.push", 1, "after"),  # sent, not yet cleared
]
WORKER_PROCESS: list[Place] = [
    ("client.worker", "client.work", "survey", 1, "after"),
    ("client.worker", "client.work", "train_round", 1, "before"),
    ("client.worker", "client.optimizers", "rate_factor", 2, "after"),  # while training
    ("client.worker", "client.work", "train_round", 1, "after"),
    ("client.worker", "client.parcels", "Draft.put", 2, "before"),  # the reply is being written
    ("client.worker", "client.parcels", "Parcel.store", 1, "after"),
    ("client.worker", "client.work", "evaluate_split", 1, "before"),
]
MIXED: list[Place] = [
    ("coordinator serve", "server.serve", "_follow", 2, "before"),
    ("server.app", "server.aggregation", "aggregate", 1, "before"),
    ("site start", "client.connection", "Connection.push", 1, "after"),
    ("server.door", "flwr.superlink.servicer.fleet.fleet_handlers", "push_object", 1, "after"),
    ("client.worker", "client.work", "train_round", 1, "after"),
    ("coordinator serve", "server.serve", "_follow", 1, "after"),
]

SUMS: list[Place] = [  # in a study with secure aggregation
    ("client.worker", "client.secure_aggregation", "_share", 1, "after"),
    ("client.worker", "client.secure_aggregation", "_mask", 1, "after"),  # noted, but not on its way yet
    ("server.app", "server.secure_sum", "masks_left", 1, "before"),  # the sites have opened their shares
    ("client.worker", "client.secure_aggregation", "_unmask", 1, "after"),
]


def study_of(rounds: int) -> Study:
    """Two stages of training, at least as many phases as places to die at."""
    return make_study(
        {
            "modalities": ["oct", "clinical"],
            "pretrain": {"rounds": 3, "batch_size": 8, "augmentation": {"flip": 0.5, "noise": 0.1}},
            "finetune": {"rounds": rounds, "batch_size": 8, "lr": 0.01},
        }
    )


def expected(folder: Path, study: Study, sites: list[Path]) -> Path:
    """The run that nothing interrupted, in a simulation."""
    run_study(study, LocalGrid(sites), folder)
    return folder


@pytest.mark.parametrize(
    "plan",
    [STUDY_PROCESS, LINK_PROCESS, NODE_PROCESS, WORKER_PROCESS, MIXED],
    ids=["study", "link", "node", "worker", "mixed"],
)
def test_run_survives_kills_and_ends_in_the_same_bits(tmp_path: Path, plan: list[Place]) -> None:
    survive(tmp_path, plan, image_sites(tmp_path / "sources"), study_of(max(len(plan) - 4, 2)))


def test_sums_survive_kills_and_are_the_same(tmp_path: Path) -> None:
    """Keys are signed here; a site goes on from its disk, a coordinator begins the round anew."""
    sites = clinical_sites(tmp_path / "sources")
    survive(tmp_path, SUMS, sites, summed_study({"finetune.rounds": len(SUMS) - 1, "strategy.round_timeout_s": 120.0}))


def survive(tmp_path: Path, plan: list[Place], sites: list[Path], study: Study) -> None:
    """Run a study whose processes die as planned, and compare its end with that of the uninterrupted one."""
    kills = tmp_path / "kills"
    kills.mkdir()
    (kills / "plan.json").write_text(json.dumps(plan))
    environment = {"FEDRETINA_KILLS": str(kills), "PYTHONPATH": str(KILLS)}
    federation = Federation(tmp_path / "real", sites, environment)
    federation.approve(study)
    run = create_run(federation.coordinator, study)
    (kills / "run.json").write_text(json.dumps(str(run.folder)))
    with federation:
        records = federation.wait(run, lambda: run.status.status in ENDED, 500.0)
    assert run.status.status == FINISHED, run.status
    died = sorted(int(file.name) for file in kills.iterdir() if file.suffix != ".json")
    assert died == list(range(len(plan)))
    assert all(not record.failed for record in records)
    assert_same_outcome(expected(tmp_path / "whole", study, sites), run.folder)


def test_run_survives_the_death_of_all_processes_at_once(tmp_path: Path) -> None:
    sites, study = image_sites(tmp_path / "sources"), study_of(4)
    federation = Federation(tmp_path / "real", sites)
    federation.approve(study)
    run = create_run(federation.coordinator, study)
    with federation:
        for done in (1, 3, 5):
            federation.wait(run, lambda done=done: len(rounds(run)) >= done)  # type: ignore[misc]
            time.sleep(0.1 * done)  # in the middle of the next
            for process in federation.processes():
                os.kill(process, signal.SIGKILL)
        federation.wait(run, lambda: run.status.status in ENDED, 400.0)
    assert run.status.status == FINISHED
    assert_same_outcome(expected(tmp_path / "whole", study, sites), run.folder)
