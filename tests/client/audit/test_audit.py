"""Does an audit find the patients whom a model knows by heart, and nobody in a model that never saw them?"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

from client import work
from client.audit.result import FAIL, LIRA, PASS, YEOM, Audit, audit_model
from client.audit.target import find_model
from client.audit.write import write_audit
from shared.errors import CheckpointError, FedretinaError
from shared.messages import Task
from tests.client.audit.sites import PATIENTS, chance_site, fix_splits, initial, neutral, overfit_study, save
from tests.server.test_report import Page

STUDY = overfit_study()


def trained(site: Path) -> dict[str, np.ndarray]:
    task = Task(STUDY, "finetune", 1, 1, "", neutral(STUDY), initial(STUDY))
    return work.train_round(site, task).weights


@pytest.fixture(scope="module")
def overfit(north: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    model = save(tmp_path_factory.mktemp("model") / "model.safetensors", STUDY, trained(north))
    return audit_model(model, north, shadows=8, redrawn=0)


def test_members_of_an_overfit_model_are_found(overfit: Audit) -> None:
    """At each rate of false alarms that can be measured the attack finds surely far more than it accuses wrongly."""
    attacks = {attack.attack: attack for attack in overfit.attacks}
    lira = attacks[LIRA]
    assert lira.interval is not None
    assert lira.interval[0] > 0.85
    for rate in lira.rates[1:]:
        assert rate is not None
        assert rate.low > 5 * rate.false_rate
        assert rate.chance < 1e-6
    assert overfit.verdict == FAIL
    assert attacks[YEOM].beats_guessing


def test_nobody_is_found_in_a_model_that_never_saw_them(north: Path, south: Path, tmp_path: Path) -> None:
    model = save(tmp_path / "model.safetensors", STUDY, trained(south))
    audit = audit_model(model, north, shadows=4, redrawn=0)
    for attack in audit.attacks:
        assert attack.interval is not None
        assert attack.interval[0] <= 0.5 <= attack.interval[1]
    assert audit.verdict == PASS


def test_patients_are_members_by_their_split_and_count_once(overfit: Audit, north: Path, tmp_path: Path) -> None:
    assert overfit.members + overfit.others == PATIENTS
    site = chance_site(tmp_path / "west", 12)
    fix_splits(site, {i: ("train", "tuning", "held_out", "held_out")[i % 4] for i in range(1, 13)})
    audit = audit_model(save(tmp_path / "m.safetensors", STUDY, initial(STUDY)), site, shadows=4, redrawn=0)
    assert (audit.members, audit.others, audit.chosen_splits) == (3, 6, True)


def test_an_audit_is_a_function_of_model_site_and_shadows(overfit: Audit, north: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    model = save(tmp_path / "model.safetensors", STUDY, trained(north))
    again = audit_model(model, north, shadows=8, redrawn=0)
    assert replace(again, model_digest=overfit.model_digest) == overfit  # metadata of the file has no fixed order


def test_more_than_a_guarantee_permits_is_told_as_such(overfit: Audit, tmp_path: Path) -> None:
    claimed = replace(overfit, epsilon=0.5, delta=1e-5, limit=0.99)
    assert claimed.verdict == FAIL
    assert claimed.breaks_its_promise
    assert not replace(claimed, epsilon=9.0).breaks_its_promise
    page, _ = write_audit(tmp_path, claimed, date(2026, 1, 2))
    assert "more patients can be told than the study" in Page(page.read_text()).text.lower()


def test_the_files_say_what_was_found_and_what_it_does_not_prove(overfit: Audit, tmp_path: Path) -> None:
    page, table = write_audit(tmp_path, overfit, date(2026, 1, 2))
    shown, data = Page(page.read_text(encoding="utf-8")), json.loads(table.read_text())
    assert data["verdict"] == FAIL
    assert data["attacks"][0]["tpr"]["0.001"] is None
    assert "1,000 held-out patients before that figure means anything" in shown.text
    assert "What this does not prove" in shown.text
    assert "It is no proof of privacy" in shown.text
    assert "Patients can be told" in shown.text
    assert not {"script", "link", "iframe"} & set(shown.tags)
    assert (page.stat().st_mode & 0o777, table.stat().st_mode & 0o777) == (0o600, 0o600)
    assert write_audit(tmp_path / "again", overfit, date(2026, 1, 2))[0].read_bytes() == page.read_bytes()


def test_a_model_is_named_by_its_file_or_its_run(tmp_path: Path) -> None:
    own = save(tmp_path / "run/arms/federated/multimodal/model.safetensors", STUDY, initial(STUDY))
    other = save(tmp_path / "run/arms/local/north/model.safetensors", STUDY, initial(STUDY))
    assert find_model(own) == find_model(tmp_path / "run") == own
    assert find_model(tmp_path / "run/arms/local") == other
    own.unlink()
    save(tmp_path / "run/arms/local/south/model.safetensors", STUDY, initial(STUDY))
    with pytest.raises(CheckpointError, match=r"must hold one model.safetensors, got 2"):
        find_model(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"must hold a model.safetensors"):
        find_model(tmp_path / "nothing")


@pytest.mark.parametrize("shadows", [2, 7])
def test_shadow_models_come_in_pairs(north: Path, shadows: int) -> None:
    with pytest.raises(FedretinaError, match=r"shadows must be an even number >= 4"):
        audit_model(north, north, shadows)
