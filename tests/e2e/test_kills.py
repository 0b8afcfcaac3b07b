"""Does a run survive the death of any of its processes anywhere, and end in the very same bits?"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

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

STUDY, LINK, NODE, WORKER = "server.app", "server.door", "site start", "client.worker"
FLEET = "flwr.superlink.servicer.fleet.fleet_handlers"
# One group a phase of the run, so that each recovers from deaths of several kinds; a place that a phase does not come
# to is armed in the next one. No worker twice in a group: a site that loses it twice over one task says so instead.
PHASES: list[list[Place]] = [
    [
        (STUDY, "server.sites", "Sites.gather", 1, "before"),  # before the survey is sent
        (WORKER, "client.work", "survey", 1, "after"),
    ],
    [
        (STUDY, "server.grid", "LinkGrid._push", 1, "after"),  # one site asked, the others not
        (LINK, "server.calls", "is_part_for", 2, "before"),
        (NODE, "client.parcels", "Draft.commit", 1, "before"),  # while receiving
        (WORKER, "client.work", "train_round", 1, "before"),
    ],
    [
        (NODE, "client.connection", "Connection.confirm", 1, "before"),
        (WORKER, "client.optimizers", "rate_factor", 2, "after"),  # while training
        (STUDY, "server.grid", "LinkGrid._complete", 1, "before"),  # an update is there
    ],
    [
        (LINK, FLEET, "confirm_message_received", 1, "before"),
        (WORKER, "client.work", "train_round", 1, "after"),
        (STUDY, "server.aggregation", "keep_update", 1, "after"),
    ],
    [
        (NODE, "client.connection", "Connection.pull", 1, "after"),
        (WORKER, "client.parcels", "Draft.write", 2, "before"),  # the reply is being written
        (STUDY, "server.aggregation", "aggregate", 1, "before"),
    ],
    [
        (WORKER, "client.parcels", "Parcel.store", 1, "after"),
        (LINK, FLEET, "push_messages", 1, "after"),
        (STUDY, "server.aggregation", "aggregate", 1, "after"),
    ],
    [
        ("coordinator serve", "server.serve", "_follow", 2, "before"),
        (NODE, "client.connection", "Connection.push", 1, "before"),
        (STUDY, "shared.files", "flush", 1, "before"),  # the checkpoint's draft is written, not in its place
    ],
    [
        (LINK, "server.parts", "PartFiles.put", 2, "before"),
        (STUDY, "shared.files", "flush", 2, "before"),  # it is in its place, not yet durable
    ],
    [
        (NODE, "client.connection", "Connection.push", 1, "after"),  # sent, not yet cleared
        (LINK, "server.parts", "PartFiles.put", 1, "after"),  # a part is in its file, the database does not know
        ("coordinator serve", "server.serve", "_follow", 1, "after"),
    ],
    [
        (STUDY, "server.state", "save_state", 1, "before"),
        (LINK, FLEET, "pull_messages", 1, "after"),
        (STUDY, "server.state", "save_state", 1, "after"),
    ],
    [
        (STUDY, "server.study", "_Run._evaluate", 1, "before"),  # between stages
        (WORKER, "client.work", "evaluate_split", 1, "before"),
        (STUDY, "shared.models.saved", "save_model", 1, "after"),
        (STUDY, "server.report.summary", "write_summary", 1, "before"),
    ],
]
SPARE_ROUNDS = 6  # in which places are armed that were passed too early

SUMS: list[list[Place]] = [  # in a study with secure aggregation
    [("client.worker", "client.secure_aggregation", "_share", 1, "after")],
    [
        ("client.worker", "client.secure_aggregation", "_mask", 1, "after"),  # noted, but not on its way yet
        ("server.app", "server.secure_sum", "masks_left", 1, "before"),  # the sites have opened their shares
        ("client.worker", "client.secure_aggregation", "_unmask", 1, "after"),  # of the same round, begun anew
    ],
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


def test_run_survives_kills_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    training = len(PHASES) - 2  # the first group is of the survey, the last one of the end
    survive(tmp_path, PHASES, image_sites(tmp_path / "sources"), study_of(training + SPARE_ROUNDS - 3))


def test_sums_survive_kills_and_are_the_same(tmp_path: Path) -> None:
    """Keys are signed here; a site goes on from its disk, a coordinator begins the round anew."""
    study = summed_study({"finetune.rounds": len(SUMS) - 1, "strategy.round_timeout_s": 120.0})
    survive(tmp_path, SUMS, clinical_sites(tmp_path / "sources"), study)


def survive(tmp_path: Path, phases: list[list[Place]], sites: list[Path], study: Study) -> None:
    """Run a study whose processes die as planned, and compare its end with that of the uninterrupted one."""
    plan = [(*place, after > 0) for places in phases for after, place in enumerate(places)]
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
    sites, study = image_sites(tmp_path / "sources"), study_of(2)
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
