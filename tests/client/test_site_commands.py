"""Can a hospital's data engineer do by commands all that taking part needs, each of which says what comes next?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.approvals import DECISIONS, accept, remember_study
from client.cli import site
from client.membership import KIT, PRIVATE_KEY, PUBLIC_KEY, own_key, read_membership
from client.parcels import LOG
from shared.code import ROOT, code_digest
from shared.config import Study
from shared.errors import ConfigError, FedretinaError, KeyFileError, SiteError
from shared.files import write_atomic
from shared.keys import fingerprint
from shared.knobs import digest, to_json
from tests.e2e.nursery import python
from tests.factories import empty_site, make_study
from tests.memberships import keyed_site, make_kit, make_task

STUDY = make_study()
SHORT = digest(STUDY)[:12]


@pytest.fixture
def north(tmp_path: Path) -> Path:
    return keyed_site(tmp_path / "north")[0].path


def type_(*arguments: str | Path) -> str:
    """What ``fedretina site`` prints; its errors are raised."""
    result = CliRunner().invoke(site, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def verdict(folder: Path, study: Study = STUDY) -> str:
    decision = json.loads((folder / DECISIONS / f"{digest(study)}.json").read_text())["decision"]
    return str(decision["verdict"])


def fedretina(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [python(), "-m", "fedretina", "site", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


# Keys and kit


def test_keys_are_made_once_and_shown_again(tmp_path: Path) -> None:
    folder = empty_site().write(tmp_path / "north").path
    made = type_("keys", "--site", folder)
    digits = fingerprint(own_key(folder).public_key())
    assert f"{folder / PUBLIC_KEY}: a new key of site north, fingerprint {digits}\n" in made
    assert "Next: send this file to the coordinator" in made
    (folder / PUBLIC_KEY).unlink()
    assert f"the key of site north, fingerprint {digits}\n" in type_("keys", "--site", folder)
    assert (folder / PUBLIC_KEY).exists()
    assert digits not in type_("keys", "--site", folder, "--new")


def test_keys_of_a_folder_that_is_no_site_are_not_made(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"dataset\.yaml must exist"):
        type_("keys", "--site", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_site_is_the_present_folder_when_none_is_named(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(north)
    assert "site north" in type_("keys")


def test_joining_says_with_whom_and_until_when(north: Path, tmp_path: Path) -> None:
    kit = make_kit("north", own_key(north), datetime.now(UTC))
    (tmp_path / "kit.json").write_text(kit.to_json())
    said = type_("join", tmp_path / "kit.json", "--site", north)
    assert f"north joined 127.0.0.1:9 until {kit.expires_at[:10]}" in said
    assert kit.fingerprint in said
    assert f"Next: fedretina site start --site {north}" in said
    assert read_membership(north).kit == kit
    with pytest.raises(KeyFileError, match="must exist"):
        type_("join", tmp_path / "none.json", "--site", north)


# Decisions


def test_a_study_is_reviewed_approved_revoked_and_refused(north: Path) -> None:
    remember_study(north, STUDY)
    public = own_key(north).public_key()
    said = type_("review", "--site", north)
    assert digest(STUDY) in said
    assert "at this site: not decided" in said
    assert f"Next: fedretina site approve {SHORT} --site {north}" in said
    assert not (north / DECISIONS).exists()

    said = type_("approve", SHORT, "--site", north, "--days", "7")
    assert f"approved tiny {SHORT} for code {code_digest()[:12]}: 2 training rounds, until " in said
    accept(north, public, make_task(STUDY))
    assert "at this site: approved on" in type_("review", "tiny", "--site", north)

    assert f"revoked tiny {SHORT}" in type_("revoke", "--site", north)
    assert verdict(north) == "revoked"
    assert f"refused tiny {SHORT}" in type_("refuse", "--site", north)
    assert verdict(north) == "refused"
    with pytest.raises(FedretinaError, match="must be approved"):
        accept(north, public, make_task(STUDY))


def test_a_study_is_approved_from_its_file_before_it_is_asked_for(north: Path, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(to_json(STUDY))
    type_("approve", tmp_path / "study.json", "--site", north)
    accept(north, own_key(north).public_key(), make_task(STUDY))


def test_of_several_studies_one_must_be_named(north: Path) -> None:
    for study in (STUDY, make_study({"name": "other"})):
        remember_study(north, study)
    for command in ("review", "approve", "refuse", "revoke"):
        with pytest.raises(FedretinaError, match="must be one study that was asked for") as caught:
            type_(command, "--site", north)
        assert f"'tiny' {SHORT}" in str(caught.value)
        assert "'other'" in str(caught.value)
    assert not (north / DECISIONS).exists()


def test_a_review_tells_what_changed_since_the_last_approval(north: Path) -> None:
    remember_study(north, STUDY)
    type_("approve", "--site", north)
    later = make_study({"name": "later", "finetune.rounds": 8})
    remember_study(north, later)
    assert "finetune.rounds: 1 -> 8" in type_("review", "later", "--site", north)


@pytest.mark.parametrize("command", ["review", "approve", "refuse", "revoke"])
def test_without_a_key_nothing_is_decided(tmp_path: Path, command: str) -> None:
    folder = empty_site().write(tmp_path / "north").path
    remember_study(folder, STUDY)
    with pytest.raises(KeyFileError, match="Make it by fedretina site keys"):
        type_(command, "--site", folder)
    assert not (folder / DECISIONS).exists()


@pytest.mark.parametrize("days", ["0", "-1", "1e3", "99999"])
def test_an_unreasonable_term_is_refused(north: Path, days: str) -> None:
    remember_study(north, STUDY)
    result = CliRunner().invoke(site, ["approve", "--site", str(north), "--days", days])
    assert result.exit_code == 2
    assert not (north / DECISIONS).exists()


def test_a_study_of_a_malicious_name_cannot_rewrite_the_terminal(north: Path) -> None:
    remember_study(north, make_study({"name": "x\x1b[2J\rgood"}))
    for command in ("review", "approve", "revoke", "refuse"):
        assert "\x1b" not in type_(command, "--site", north)


# As typed in a shell


def test_an_error_is_one_line_and_exit_code_2(north: Path) -> None:
    found = fedretina(north, "start")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("fedretina: . must have joined a federation.")
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_site_that_serves_ends_when_it_is_asked_to(north: Path, number: signal.Signals) -> None:
    """The coordinator is not there: the site waits for it, says so, and stops at once all the same."""
    write_atomic(north / KIT, make_kit("north", own_key(north), datetime.now(UTC)).to_json().encode())
    command = [python(), "-m", "fedretina", "site", "start", "--site", str(north)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "127.0.0.1:9 must be reachable" in line, line
        asked = time.monotonic()
        process.send_signal(number)
        assert process.wait(20) == 0
        assert time.monotonic() - asked < 10
        assert "Traceback" not in process.stderr.read()
    (entry, *_) = [json.loads(text) for text in (north / LOG).read_text().splitlines()]
    assert "must be reachable" in entry["text"]
    assert (north / LOG).stat().st_mode & 0o777 == 0o600
    assert os.listdir(north / "state/work") == ["lock"]


def test_no_secret_is_ever_printed(north: Path) -> None:
    secret = (north / PRIVATE_KEY).read_text().splitlines()[1]
    remember_study(north, STUDY)
    for command in ("keys", "review", "approve", "revoke", "refuse"):
        assert secret not in type_(command, "--site", north)


def test_help_does_not_load_what_trains() -> None:
    program = "import sys; import client.cli; print([m for m in ('torch', 'flwr', 'pandas') if m in sys.modules])"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"


def test_a_file_that_is_no_study_is_named(north: Path, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(ConfigError, match=r"s\.json"):
        type_("review", tmp_path / "s.json", "--site", north)
