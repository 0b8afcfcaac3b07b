"""Is a rehearsal a whole federation with the real commands, and does the network change nothing of what is computed?"""

from __future__ import annotations

import io
import socket
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from server.coordinator import FINISHED, RunFolder
from server.report.page import REPORT
from server.study import MODEL, run_study
from shared.checkpoints import load_arrays
from shared.errors import ConfigError
from shared.site_folder import SiteFolder
from simulation.cohorts.build import build_cohort
from simulation.compose import compose_experiment
from simulation.grid import LocalGrid
from simulation.rehearse import COORDINATOR, SITES, borrow_site, free_port, overrides, rehearse
from tests.e2e.commands import RECORDS_ONLY
from tests.server.federations import assert_same_bits

TWO_SITES = [
    *(setting for setting in RECORDS_ONLY if not setting.startswith("cohort.sites")),
    "sites=2",
    "pretrain.rounds=0",
]


@pytest.mark.parametrize(
    ("arguments", "composed"),
    [
        ([], ["experiment=demo", "cohort.sites=3", "comparison=none"]),
        (["sites=5", "seed=2"], ["experiment=demo", "comparison=none", "cohort.sites=5", "seed=2"]),
        (["experiment=ist"], ["comparison=none", "experiment=ist"]),
        (["cohort=ist"], ["experiment=demo", "comparison=none", "cohort=ist"]),
    ],
)
def test_demo_at_three_sites_unless_something_else_is_asked_for(arguments: list[str], composed: list[str]) -> None:
    assert overrides(arguments) == composed


def test_port_is_free() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))


def test_borrowed_site_has_the_data_and_a_state_of_its_own(site: SiteFolder, tmp_path: Path) -> None:
    (site.path / "site.yaml").write_text("quarantine_limit: 0.5\n")
    (site.path / "state").mkdir()
    (site.path / "state" / "cache").write_text("of the owner")
    before = sorted(site.path.rglob("*"))
    borrowed = borrow_site(site.path, tmp_path / "copy")
    assert SiteFolder(borrowed).dataset() == site.dataset()
    assert SiteFolder(borrowed).events().equals(site.events())
    assert not (borrowed / "state").exists()
    assert yaml.safe_load((borrowed / "site.yaml").read_text()) == {"quarantine_limit": 0.5, "threads": 1}
    (borrowed / "state").mkdir()
    (borrowed / "state" / "new").write_text("of the rehearsal")
    assert sorted(site.path.rglob("*")) == before


def test_folder_that_holds_something_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    experiment = compose_experiment(overrides(TWO_SITES))
    with pytest.raises(ConfigError, match="must be a new folder"):
        rehearse(experiment, tmp_path, Console(file=io.StringIO()))
    assert [path.name for path in tmp_path.iterdir()] == ["cat.jpg"]


def test_rehearsal_gives_the_bits_of_a_simulation(tmp_path: Path) -> None:
    experiment = compose_experiment([*overrides(TWO_SITES), f"simulation.cache={tmp_path / 'cohorts'}"])
    told = io.StringIO()
    run = rehearse(experiment, tmp_path / "run", Console(file=told, width=200))
    assert RunFolder(run).status.status == FINISHED, told.getvalue()
    assert (run / REPORT).exists()
    assert "finetune   2/2" in told.getvalue()
    assert "left out" not in told.getvalue()
    built = build_cohort(experiment.cohort, experiment.task, experiment.seed, tmp_path / "cohorts", 1)
    assert {site.name for site in built.sites} == {site.name for site in (tmp_path / "run" / SITES).iterdir()}
    for site in built.sites:
        assert [file.name for file in (site / "state").iterdir()] == ["privacy.key"]  # made with the cohort
    run_study(experiment.study, LocalGrid(built.sites), tmp_path / "simulated")
    assert_same_bits(load_arrays(run / MODEL)[0], load_arrays(tmp_path / "simulated" / MODEL)[0])
    assert run.is_relative_to(tmp_path / "run" / COORDINATOR)
