"""Does a site withhold an update that gives its patients away, when it asked for that, and does the study go on?"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client import work
from client.audit.gate import FEWEST, UnsafeUpdateError
from client.site import SiteSettings, read_settings
from client.splits import HELD_OUT, TRAIN
from client.store import SiteStore, open_store
from server.state import ROUNDS
from server.study import run_study
from shared.config import Study
from shared.errors import SiteError
from shared.messages import Task
from shared.weights import Weights
from simulation.grid import LocalGrid
from tests.client.audit.sites import initial, narrow_study, neutral, overfit_study

OVERFIT, NARROW = overfit_study(), narrow_study()
Sites = Callable[[SiteStore], SiteStore]


def update_of(site: Path, study: Study) -> Weights:
    return work.train_round(site, Task(study, "finetune", 1, 1, "", neutral(study), initial(study))).weights


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sites], None]:
    """Changes what opening a site gives, without writing and reading another one."""

    def put(change: Sites) -> None:
        monkeypatch.setattr(work, "open_store", lambda path, study: change(open_store(path, study)))

    return put


def gated(audit: str) -> Sites:
    return lambda store: replace(store, settings=SiteSettings(audit=audit))


def test_an_update_that_gives_patients_away_is_withheld(
    north: Path, asked: Callable[[Sites], None], caplog: pytest.LogCaptureFixture
) -> None:
    asked(gated("veto"))
    with caplog.at_level(logging.INFO, "client"), pytest.raises(UnsafeUpdateError, match=r"audit_tpr_limit") as refused:
        update_of(north, OVERFIT)
    assert "audit of the update: at 1 false alarm(s)" in caplog.text
    assert refused.value.value > 0.1
    assert str(refused.value.value) not in refused.value.for_others()
    assert "must give away at most 0.1 of the patients" in refused.value.for_others()


def test_one_that_does_not_may_leave(north: Path, asked: Callable[[Sites], None]) -> None:
    asked(gated("veto"))
    assert update_of(north, NARROW)


def test_a_warning_stays_in_the_log_and_changes_nothing(
    north: Path, asked: Callable[[Sites], None], caplog: pytest.LogCaptureFixture
) -> None:
    asked(gated("warn"))
    with caplog.at_level(logging.WARNING, "client"):
        warned = update_of(north, OVERFIT)
    assert "audit of the update must give away at most 0.1" in caplog.text
    caplog.clear()
    asked(gated("off"))
    plain = update_of(north, OVERFIT)
    assert not caplog.records
    assert all((plain[name] == warned[name]).all() for name in plain)


def test_what_cannot_be_judged_does_not_pass(north: Path, asked: Callable[[Sites], None]) -> None:
    def few(store: SiteStore) -> SiteStore:
        splits = np.where(store.case_subjects < FEWEST, HELD_OUT, TRAIN).astype(object)
        return gated("veto")(replace(store, case_splits=splits))

    asked(few)
    with pytest.raises(UnsafeUpdateError, match=r"at least 20 held-out patients, got 19"):
        update_of(north, NARROW)


def test_the_round_goes_on_without_a_site_that_withholds(
    north: Path, south: Path, tmp_path: Path, asked: Callable[[Sites], None]
) -> None:
    asked(lambda store: gated("veto")(store) if store.name == "north" else store)
    run_study(OVERFIT, LocalGrid([north, south]), tmp_path)
    rounds = [json.loads(line) for line in (tmp_path / ROUNDS).read_text().splitlines()]
    trained = next(each for each in rounds if each["stage"] == "finetune")
    assert trained["sites"] == ["south"]
    assert trained["failed"].keys() == {"north"}
    assert "audit of the update must give away at most" in trained["failed"]["north"]


def test_the_setting_is_read_as_people_write_it(tmp_path: Path) -> None:
    for text, meaning in (("", "off"), ("audit: off", "off"), ("audit: 'off'", "off"), ("audit: warn", "warn")):
        (tmp_path / "site.yaml").write_text(text)
        assert read_settings(tmp_path).audit == meaning
    for text in ("audit: yes", "audit: vetoes", "audit_tpr_limit: 1.0"):
        (tmp_path / "site.yaml").write_text(text)
        with pytest.raises(SiteError, match=r"audit"):
            read_settings(tmp_path)
