"""Is a coordinator's folder found, checked and left as its owner means it?"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pytest

from server.coordinator import (
    FAILED,
    FINISHED,
    RUNNING,
    SETTINGS,
    STOPPED,
    STUDY,
    WAITING,
    RunFolder,
    Settings,
    Status,
    create_run,
    find_run,
    init,
    read_settings,
    runs,
    write_kit,
)
from server.enrolment import enrol
from shared.errors import ConfigError, FedretinaError
from shared.keys import new_key, public_pem
from shared.kit import parse_kit
from tests.factories import make_study

SETTING = Settings(address="coordinator.example", host="0.0.0.0", port=9999)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init(tmp_path / "c", SETTING)
    return tmp_path / "c"


def test_settings_are_read_as_they_were_made(folder: Path) -> None:
    assert read_settings(folder) == SETTING
    assert SETTING.public == "coordinator.example:9999"


def test_only_its_owner_enters_the_folder(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    for file in folder.rglob("*.key"):
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_coordinator_is_made_once(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ConfigError, match="must not hold a coordinator yet"):
        init(folder, Settings())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_folder_without_a_coordinator_is_none(tmp_path: Path) -> None:
    for act in (read_settings, find_run, lambda f: create_run(f, make_study())):
        with pytest.raises(ConfigError, match=r"must hold a coordinator.* Make it by fedretina coordinator init"):
            act(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port: 0", "port must be >= 1, got 0"),
        ("port: 70000", "port must be <= 65535"),
        ("prot: 9443", "prot"),
        ("port: [", "must be valid YAML"),
        ("port: nine", "port"),
        ("- port", "coordinator.yaml"),
    ],
)
def test_settings_that_are_none_are_told_of(folder: Path, text: str, said: str) -> None:
    (folder / SETTINGS).write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        read_settings(folder)
    assert "coordinator.yaml" in str(error.value)


def test_empty_settings_are_the_defaults(folder: Path) -> None:
    (folder / SETTINGS).write_text("")
    assert read_settings(folder) == Settings()


def test_a_kit_holds_nothing_secret_and_all_that_a_site_needs(folder: Path) -> None:
    key = new_key()
    file = write_kit(folder, enrol(folder, "north", public_pem(key.public_key()), 30))
    text = file.read_text()
    assert "PRIVATE" not in text
    kit = parse_kit(text.encode(), "kit")
    assert (kit.site, kit.address) == ("north", "coordinator.example:9999")
    assert kit.authority == (folder / "ca.crt").read_text()
    assert kit.public_key == public_pem(key.public_key()).decode()
    assert datetime.fromisoformat(kit.expires_at).tzinfo is not None


# Runs


def test_a_run_keeps_its_study(folder: Path) -> None:
    study = make_study()
    run = create_run(folder, study)
    assert run.study == study
    assert run.name == f"{study.name}-seed{study.seed}"
    assert find_run(folder, run.name).folder == run.folder


def test_a_name_is_taken_once(folder: Path) -> None:
    create_run(folder, make_study(), "a")
    with pytest.raises(ConfigError, match=r"must not be taken, got .* Go on with it by fedretina coordinator resume a"):
        create_run(folder, make_study(), "a")


@pytest.mark.parametrize("name", [".", "..", "../x", "a/b", "-a", ".a", "a b", "a\n", "a" * 64])
def test_a_name_is_one_that_a_folder_can_have(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name of the run must be of letters"):
        create_run(folder, make_study(), name)
    assert list(runs(folder)) == []


def test_runs_are_in_the_order_in_which_they_were_made(folder: Path) -> None:
    for age, name in enumerate("bac"):
        file = create_run(folder, make_study(), name).folder / STUDY
        os.utime(file, (1000 + age, 1000 + age))
    assert [run.name for run in runs(folder)] == ["b", "a", "c"]
    assert find_run(folder).name == "c"
    with pytest.raises(ConfigError, match=r"run must be one of .*, got .d.\. Known: b, a, c"):
        find_run(folder, "d")


def test_without_a_run_there_is_none_to_find(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Known: none yet"):
        find_run(folder)


def test_a_run_waits_then_becomes_what_it_is_told(folder: Path) -> None:
    run = create_run(folder, make_study())
    assert run.status == Status(WAITING)
    for status, reason in ((RUNNING, ""), (FAILED, "too few sites: north"), (FINISHED, "")):
        run.become(status, reason)
        assert RunFolder(run.folder).status == Status(status, reason)


def test_a_run_is_stopped_and_goes_on(folder: Path) -> None:
    run = create_run(folder, make_study())
    assert not run.is_to_stop
    run.ask_to_stop()
    assert run.is_to_stop
    run.become(STOPPED)
    run.go_on()
    assert not run.is_to_stop
    assert run.status == Status(WAITING)


def test_a_run_that_failed_goes_on_and_one_that_finished_does_not(folder: Path) -> None:
    run = create_run(folder, make_study())
    run.become(FAILED, "x")
    with pytest.raises(FedretinaError, match="must not have ended, got 'failed'"):
        run.ask_to_stop()
    run.go_on()
    assert run.status == Status(WAITING)
    run.become(FINISHED)
    with pytest.raises(FedretinaError, match="must not have finished"):
        run.go_on()
    assert run.status == Status(FINISHED)
