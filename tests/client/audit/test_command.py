"""Does ``fedretina audit-model`` attack the model of a run, leave its files at the site, and say by its exit code?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client import work
from shared.messages import Task
from tests.client.audit.sites import initial, neutral, overfit_study, save
from tests.e2e.commands import fedretina

STUDY = overfit_study()


@pytest.fixture
def run(north: Path, tmp_path: Path) -> Path:
    """A folder with a model that knows the patients of ``north`` by heart."""
    trained = work.train_round(north, Task(STUDY, "finetune", 1, 1, "", neutral(STUDY), initial(STUDY))).weights
    save(tmp_path / "run" / "model.safetensors", STUDY, trained)
    return tmp_path / "run"


def test_files_and_exit_code_say_what_was_found(run: Path, north: Path, tmp_path: Path) -> None:
    where = ["--site", str(north), "--out", str(tmp_path / "audit")]
    done = fedretina(tmp_path, "audit-model", str(run), *where, "--shadows", "8", "--redrawn", "1")
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("patients can be told: ")
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert found["verdict"] == "fail"
    assert "<html" in (tmp_path / "audit" / "audit.html").read_text()


def test_what_is_no_model_is_one_line(north: Path, tmp_path: Path) -> None:
    done = fedretina(tmp_path, "audit-model", str(tmp_path), "--site", str(north))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (north / "audit").exists()
