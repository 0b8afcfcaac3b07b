"""Does a real federation keep to what its people said: refused, stopped, failed, and nothing of a patient told?"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

from client.approvals import REFUSED, decide
from client.membership import own_key
from server.coordinator import FAILED, FINISHED, STOPPED, RunFolder, create_run
from server.follow import rounds
from shared.config import Study
from simulation.rehearse import processes_of
from tests.e2e.federation import Federation
from tests.e2e.nursery import process_state
from tests.factories import SYSTOLIC, make_study, small_site
from tests.server.federations import clinical_sites, clinical_study

PLANTED = ("Doe^Jane", "990017", "1950-01-01")  # a file's name, patients' numbers, a birth date
TORN_TABLE = b"PAR1 Muster^Eva 880016 PAR1"


def planted_sites(folder: Path) -> list[Path]:
    """Sites whose patients have numbers and files that can be found again, one scan of which cannot be read."""
    sites = []
    for place, name in enumerate(("north", "south")):
        tables = small_site(name, patients=24, first=990017000 + 100 * place)
        measured = tables.events["code"] == SYSTOLIC
        tables.events.loc[measured, "numeric_value"] = 120.0 + np.arange(measured.sum(), dtype=np.float32)
        tables.files = {path.replace("image-", "Doe^Jane-"): content for path, content in tables.files.items()}
        tables.images["path"] = tables.images["path"].str.replace("image-", "Doe^Jane-")
        tables.files[next(iter(tables.files))] = b"torn"
        sites.append(tables.write(folder / name).path)
    return sites


def written(folder: Path) -> dict[Path, bytes]:
    """All that a run left below a folder, but the sites' own data and what they keep of it."""
    return {
        file: file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and "store" not in file.parts and not any(part.is_symlink() for part in file.parents)
        if not file.is_symlink() and "cache" not in str(file)
    }


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, RunFolder]:
    """A federation after a run: two sites with planted patients, and one with a table that cannot be read."""
    folder = tmp_path_factory.mktemp("told")
    study = make_study({"finetune.rounds": 2, "finetune.batch_size": 8, "strategy.round_timeout_s": 120.0})
    torn = small_site("torn", patients=12).write(folder / "sources" / "torn").path
    federation = Federation(folder / "real", [*planted_sites(folder / "sources"), torn])
    for site in federation.sites:
        settings = (site / "site.yaml").read_text()
        (site / "site.yaml").write_text(settings + "quarantine_limit: 0.5\n")
    events = federation.sites[2] / "events.parquet"
    events.unlink()
    events.write_bytes(TORN_TABLE)
    federation.approve(study)
    with federation:
        run = federation.run(study)
    assert run.status.status == FINISHED, run.status
    return federation, run


def test_nothing_that_names_a_patient_is_logged_or_leaves(told: tuple[Federation, RunFolder]) -> None:
    federation, run = told
    (survey, *_) = rounds(run)
    assert survey.sites == ["north", "south"]
    everything = written(federation.folder)
    logs = [file for file in everything if "log" in file.name or "log" in file.parts]
    assert len(logs) >= 4
    assert any(file.is_relative_to(federation.coordinator / "runs") for file in everything)
    for file, content in everything.items():
        for planted in PLANTED:
            assert planted.encode() not in content, (planted, file)


def test_exceptions_text_reaches_no_log_and_not_the_coordinator(told: tuple[Federation, RunFolder]) -> None:
    """A library that cannot read a table may quote it."""
    federation, run = told
    (survey, *_) = rounds(run)
    assert list(survey.failed) == ["torn"]
    (events,) = [file for file, content in written(federation.folder).items() if b"Muster^Eva" in content]
    assert events == federation.sites[2] / "events.parquet"


def long_study() -> Study:
    """One round that takes an hour."""
    return clinical_study({"finetune.rounds": 1, "finetune.epochs": 1e5})


def workers(federation: Federation) -> list[int]:
    """Processes that do the work at the sites."""
    return [process for process, command in processes_of(federation.folder).items() if "client.worker" in command]


def test_stop_ends_the_training_within_seconds_and_workers_end_with_their_site(tmp_path: Path) -> None:
    study = long_study()
    federation = Federation(tmp_path / "real", clinical_sites(tmp_path / "sources", count=2))
    federation.approve(study)
    run = create_run(federation.coordinator, study)
    with federation:
        federation.wait(run, lambda: len(rounds(run)) == 1)
        federation.wait(run, lambda: all(busy(worker) for worker in workers(federation)))
        run.ask_to_stop()
        started = time.monotonic()
        federation.wait(run, lambda: run.status.status == STOPPED)
        federation.wait(run, lambda: not workers(federation))
        assert time.monotonic() - started < 60  # of a round that takes an hour
        run.go_on()
        federation.wait(run, lambda: bool(workers(federation)))  # and it can go on
    until = time.monotonic() + 10
    while federation.processes() and time.monotonic() < until:
        time.sleep(0.1)
    assert federation.processes() == []


def busy(process: int) -> bool:
    """Has it used processor time in the last moment?"""
    child = Path(f"/proc/{process}/comm").read_text().strip()  # of which this is the stand-in

    def used() -> int:
        fields = process_state(child)
        return int(fields[11]) + int(fields[12])

    before = used()
    time.sleep(0.3)
    return used() > before


def test_refused_or_changed_study_is_not_run_and_the_failure_is_told(tmp_path: Path) -> None:
    study = clinical_study(
        {"strategy.gathering_timeout_s": 15.0, "strategy.start_sites": 2, "strategy.round_timeout_s": 120.0}
    )
    federation = Federation(tmp_path / "real", clinical_sites(tmp_path / "sources"))
    first, second, third = federation.sites
    federation.approve(study, [first])
    decide(second, own_key(second), study, REFUSED, days=1)
    changed = dataclasses.replace(study, finetune=dataclasses.replace(study.finetune, lr=0.5))
    federation.approve(changed, [third])
    with federation:
        federation.wait_for_sites()  # else the time for gathering would have to do for starting them too
        run = federation.run(study)
    assert run.status.status == FAILED
    assert "must be >= 2, got 1" in run.status.reason
    assert "site-01: study 'tiny'" in run.status.reason
    assert "must be approved by the site, got 'refused'" in run.status.reason
    assert "site-02: study 'tiny'" in run.status.reason
    for site in (second, third):
        assert not (site / "state" / "store").exists()  # no data was opened
