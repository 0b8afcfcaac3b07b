"""Does a coordinator's command do what it says, tell what comes next, and refuse in one line what cannot work?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedretina import app
from server.coordinator import FAILED, FINISHED, LOG, RUNNING, RUNS, STOPPED, STUDY, RunFolder, read_settings
from server.enrolment import read_enrolments
from server.serve import _lock, is_served
from server.state import ROUNDS, RoundRecord
from shared.config import Study
from shared.errors import ConfigError, FedretinaError, KeyFileError
from shared.keys import new_key, public_pem
from shared.kit import parse_kit
from shared.knobs import from_json, to_json
from tests.e2e.commands import fedretina
from tests.server.federations import clinical_study

Plan = Callable[..., None]
SMALL = ["experiment=demo", "model=linear", "modalities=[clinical]", "pretrain.rounds=0"]


def coordinator(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["coordinator", *arguments])


def done(*arguments: str) -> str:
    """What a command printed that did what it was asked."""
    result = coordinator(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def refused(*arguments: str) -> FedretinaError:
    """The error of a command that was refused."""
    error = coordinator(*arguments).exception
    assert isinstance(error, FedretinaError)
    assert "\n" not in str(error)
    return error


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDRETINA_COORDINATOR", raising=False)
    return tmp_path


@pytest.fixture
def folder(workplace: Path) -> Path:
    """A coordinator's folder, in the place where commands look for it."""
    done("init", "--address", "fl.example.org")
    return workplace / "coordinator"


@pytest.fixture
def key(workplace: Path) -> str:
    """A site's public key, as a file."""
    (workplace / "site.pub").write_bytes(public_pem(new_key().public_key()))
    return "site.pub"


@pytest.fixture
def study_file(workplace: Path) -> str:
    (workplace / "study.json").write_text(to_json(clinical_study()))
    return "study.json"


def test_help_does_not_wait_for_large_packages() -> None:
    slow = "{'torch', 'flwr', 'hydra', 'pandas', 'cryptography'}"
    code = f"import fedretina, sys; print({slow} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# The folder


def test_init_makes_what_was_asked_for_once(workplace: Path) -> None:
    told = done("init", "--address", "fl.example.org", "--host", "0.0.0.0", "--port", "8443", "--folder", "here")
    assert "fl.example.org:8443" in told
    assert "coordinator enrol" in told
    settings = read_settings(workplace / "here")
    assert (settings.public, settings.host) == ("fl.example.org:8443", "0.0.0.0")
    assert "must not hold a coordinator yet" in str(refused("init", "--address", "other", "--folder", "here"))
    assert read_settings(workplace / "here") == settings


def test_port_that_cannot_be_leaves_nothing(workplace: Path) -> None:
    assert "port must be <= 65535, got 70000" in str(refused("init", "--address", "a", "--port", "70000"))
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("command", ["sites", "status", "stop", "resume", "report", "serve"])
def test_folder_without_a_coordinator_is_told(command: str, workplace: Path) -> None:
    assert "must hold a coordinator" in str(refused(command))
    assert list(workplace.iterdir()) == []


def test_folder_may_be_named_by_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("FEDRETINA_COORDINATOR", str(folder))
    done("status")


# Sites


def test_enrolled_site_gets_a_kit_and_is_listed_until_revoked(folder: Path, key: str) -> None:
    told = done("enrol", "north", key, "--days", "30")
    (enrolment,) = read_enrolments(folder)
    assert enrolment.fingerprint in told
    assert "fedretina site join north.json" in told
    kit = parse_kit((folder / "kits" / "north.json").read_bytes(), "kit")
    assert (kit.site, kit.address, kit.public_key) == ("north", "fl.example.org:9443", enrolment.public_key)
    listed = done("sites")
    for word in ("north", enrolment.fingerprint, enrolment.expires_at[:10], "valid"):
        assert word in listed
    done("revoke", "north")
    assert "revoked" in done("sites")
    assert isinstance(refused("revoke", "north"), KeyFileError)


def test_key_that_is_none_is_told(folder: Path, workplace: Path) -> None:
    assert "absent.pub must exist" in str(refused("enrol", "north", "absent.pub"))
    (workplace / "cat.jpg").write_bytes(b"\xff\xd8cat")
    assert "must hold a public key" in str(refused("enrol", "north", "cat.jpg"))
    assert read_enrolments(folder) == []


# Studies


def test_study_is_written_as_it_is_run(folder: Path, workplace: Path) -> None:
    done("study", *SMALL, "seed=3", "--out", "handed-over.json")
    done("run", *SMALL, "seed=3", "--detach")
    done("run", "handed-over.json", "--name", "again", "--detach")
    texts = {(folder / RUNS / name / STUDY).read_text() for name in ("demo-seed3", "again")}
    assert texts == {(workplace / "handed-over.json").read_text()}
    assert from_json(Study, texts.pop()).seed == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["finetune.round=3"], "finetune.round"),
        (["+finetune.round=3"], "Did you mean finetune.rounds?"),
        (["finetune.lr=-1"], "finetune.lr must be > 0.0, got -1.0"),
        (["experiment=demos"], "experiment/demos"),
        (["seed=1,2"], "seed=1,2"),
        (["cohort.sites=3"], "cohort is a setting of simulations"),
        (["strategy=fedprox", "strategy.proximal_mu=0"], "strategy.proximal_mu must be > 0 with fedprox"),
        (["absent.json"], "absent.json must be a study's file"),
        (["cat.json"], "Study must be valid JSON"),
    ],
)
def test_study_that_cannot_work_is_refused_and_no_run_is_made(
    folder: Path, workplace: Path, settings: list[str], words: str
) -> None:
    (workplace / "cat.json").write_text("cat")
    assert words in str(refused("run", *settings, "--detach"))
    assert not (folder / RUNS).exists()


def test_refusal_is_one_line_and_exit_code_2(folder: Path, workplace: Path) -> None:
    """The whole way, in a process of its own."""
    ended = fedretina(workplace, "coordinator", "run", "finetune.lr=-1")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "fedretina: finetune.lr must be > 0.0, got -1.0\n"


def test_name_that_is_taken_is_refused(folder: Path, study_file: str) -> None:
    done("run", study_file, "--detach", "--name", "first")
    assert "must not be taken" in str(refused("run", study_file, "--detach", "--name", "first"))
    assert isinstance(refused("run", study_file, "--detach", "--name", "../first"), ConfigError)


# Runs


def test_folder_that_nobody_serves_is_told(folder: Path, study_file: str) -> None:
    for command in (["run", study_file, "--detach"], ["status"], ["stop"], ["resume"]):
        assert "start fedretina coordinator serve" in coordinator(*command).stderr
    with _lock(folder):
        assert is_served(folder)
        assert coordinator("status").stderr == ""
    assert not is_served(folder)


def test_folder_is_served_by_one_process(folder: Path) -> None:
    with _lock(folder):
        assert "must be served by one process only" in str(refused("serve"))
    assert (folder / LOG).exists()


def test_status_names_every_run_and_its_last_round(folder: Path, study_file: str) -> None:
    for name in ("first", "second"):
        done("run", study_file, "--detach", "--name", name)
    first = RunFolder(folder / RUNS / "first")
    record = RoundRecord("finetune", 2, 3, loss=0.5, sites=["east"], failed={"north": "memory\n was short"})
    write_rounds(first, [RoundRecord("survey", 1, 1, sites=["east", "north"]), record])
    first.become(FAILED, "too few\nsites")
    assert done("status").splitlines() == [
        "finetune   2/3    loss 0.5000  1/2 sites  0.0 s",
        "  north left out: memory was short",
        "first: failed: too few sites",
        "second: waiting",
    ]
    assert done("status", "first").startswith("survey     1/1    2/2 sites")
    assert "Known: first, second." in str(refused("status", "third"))


def test_stopped_run_goes_on_when_resumed(folder: Path, study_file: str) -> None:
    done("run", study_file, "--detach", "--name", "one")
    run = RunFolder(folder / RUNS / "one")
    assert "coordinator resume one" in done("stop")
    assert run.is_to_stop
    assert "one: waiting, to be stopped" in done("status")
    done("resume", "one")
    assert not run.is_to_stop
    run.become(FINISHED)
    refused("resume")
    refused("stop")


def write_rounds(run: RunFolder, records: list[RoundRecord]) -> None:
    (run.folder / ROUNDS).write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))


@pytest.fixture
def at_every_look(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Let things happen, one between each two looks of somebody who follows a run."""

    def plan(*happenings: Callable[[], object]) -> None:
        left = iter(happenings)
        monkeypatch.setattr("server.follow.time.sleep", lambda seconds: next(left)())

    return plan


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_run_is_followed_to_its_end(folder: Path, study_file: str, at_every_look: Plan) -> None:
    run = RunFolder(folder / RUNS / "one")
    rounds = [RoundRecord("finetune", number, 2, loss=0.5, sites=["east"]) for number in (1, 2)]

    def end() -> None:
        write_rounds(run, rounds)
        run.become(FINISHED)

    at_every_look(
        lambda: run.become(RUNNING, "waiting for north to connect"),
        lambda: run.become(RUNNING),
        lambda: write_rounds(run, rounds[:1]),
        lambda: None,
        end,
    )
    with _lock(folder):
        told = done("run", study_file, "--name", "one").splitlines()
    assert told == [
        "run coordinator/runs/one",
        "one: waiting",
        "one: running: waiting for north to connect",
        "one: running",
        *(record.describe() for record in rounds),
        "one: finished",
        "report coordinator/runs/one/report.html",
    ]


@pytest.mark.parametrize("status", [FAILED, STOPPED])
def test_exit_code_is_1_when_the_run_did_not_finish(
    folder: Path, study_file: str, status: str, at_every_look: Plan
) -> None:
    at_every_look(lambda: RunFolder(folder / RUNS / "one").become(status, "why"))
    result = coordinator("run", study_file, "--name", "one")
    assert result.exit_code == 1
    assert f"one: {status}: why" in result.stdout
    assert coordinator("status", "--follow").exit_code == 1


def test_interrupted_terminal_leaves_the_run_going(folder: Path, study_file: str, at_every_look: Plan) -> None:
    at_every_look(_interrupt)
    result = coordinator("run", study_file, "--name", "one")
    assert result.exit_code == 130
    assert "follow it by fedretina coordinator status one --follow" in result.stderr
    assert not RunFolder(folder / RUNS / "one").is_to_stop


def test_report_of_an_unfinished_run_is_refused(folder: Path, study_file: str) -> None:
    done("run", study_file, "--detach")
    assert "summary.json must exist" in str(refused("report"))
