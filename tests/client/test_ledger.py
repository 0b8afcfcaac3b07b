"""Is every release counted once, whatever ends in the middle, and is none made that the site does not let go?"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client.approvals import APPROVED, accept, decide
from client.cli import site as site_commands
from client.database import transaction
from client.ledger import LEDGER, BudgetError, accounted, entries, forecast, spent
from client.review import review
from client.site import SiteSettings
from client.spending import outlook, statement
from shared.accounting import Release, epsilon
from shared.config import Study
from shared.errors import FedretinaError, SiteError
from shared.keys import new_key
from shared.messages import Task
from shared.statistics import Statistics
from tests.client.kills import in_a_process
from tests.client.plans import COST, DELTA, StagePlan, follow
from tests.factories import make_study, small_site
from tests.shared.test_accounting import independent

STUDY = make_study({"modalities": ["clinical"], "pretrain.rounds": 0, "finetune.rounds": 4})
STATISTICS = Statistics((70.0, 106.0), (5.0, 4.0), 0.5)
NO_LIMIT = float("inf")


@pytest.fixture
def north(tmp_path: Path) -> Path:
    return small_site(modalities=()).write(tmp_path / "north").path


def task(stage: str = "finetune", number: int = 1, value: float = 0.0, study: Study = STUDY) -> Task:
    """A task; ``value`` tells its weights apart."""
    return Task(study, stage, number, 4, "", STATISTICS, {"w": np.full((2, 3), value, np.float32)})


def release(folder: Path, *tasks: Task, limit: float = NO_LIMIT) -> None:
    for one in tasks:
        with accounted(folder, one, limit):
            pass


def refusal(folder: Path, one: Task, limit: float = NO_LIMIT) -> str:
    """Why a task is not begun."""
    with pytest.raises(BudgetError) as caught, accounted(folder, one, limit):
        raise AssertionError("the work was begun")
    return caught.value.for_others()


# What counts


def test_the_ledger_composes_all_that_was_released(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"survey": Release(20.0, 1.0, 1), "finetune": Release(6.0, 1.0, 2)}
    follow(monkeypatch, StagePlan(costs))
    done = [task("survey", 0), *(task(number=number) for number in range(1, 4))]
    release(north, *done)
    history = [costs[one.stage] for one in done]
    assert [entry.release for entry in entries(north)] == history
    assert [entry.epsilon for entry in entries(north)] == [epsilon(history[: i + 1], DELTA) for i in range(4)]
    assert spent(entries(north), DELTA) == epsilon(history, DELTA)
    assert entries(north)[0].patients == 12


def test_a_round_that_uses_the_count_of_the_survey_pays_for_it_once(
    north: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(monkeypatch, StagePlan())
    study = make_study({"modalities": ["clinical"], "pretrain.rounds": 0, "finetune.site_intercept": True})
    survey = Task(study, "survey", 0, 0, "", None, {})
    release(north, task(study=study), task(number=2, study=study), survey, task("evaluate", study=study))
    assert [entry.stage for entry in entries(north)] == ["survey", "finetune", "finetune", "evaluate"]


def test_a_repeated_task_is_the_same_release_and_another_input_another(north: Path) -> None:
    """Two results with the same noise tell, by their difference, all that differs: none may pass for a repetition."""
    release(north, task(), task(), task())
    assert len(entries(north)) == 1
    others = [
        task(number=2),
        task(value=1.0),
        replace(task(), rounds=5),
        replace(task(), statistics=Statistics((70.0, 106.0), (5.0, 5.0), 0.5)),
        replace(task(), split="held_out"),
        replace(task(), code="f" * 64),
        task(study=replace(STUDY, seed=2)),
        replace(task(), weights={"v": task().weights["w"]}),
        replace(task(), weights={"w": task().weights["w"].reshape(3, 2)}),
    ]
    for count, other in enumerate(others, start=2):
        release(north, other, other)
        assert len(entries(north)) == count


def test_the_same_task_on_other_data_is_another_release(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from client.store import open_store

    follow(monkeypatch, StagePlan())
    release(north, task())
    more = small_site(modalities=(), patients=13).write(north.parent / "more").path
    for file in ("events.parquet", "labels/detection.parquet"):
        (more / file).replace(north / file)
    open_store.cache_clear()  # as a process that starts anew
    release(north, task())
    assert len(entries(north)) == 2


def test_what_was_spent_stays_spent_when_patients_come(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from client.store import open_store

    follow(monkeypatch, StagePlan())
    release(north, task())
    more = small_site(modalities=(), patients=13).write(north.parent / "more").path
    (more / "events.parquet").replace(north / "events.parquet")
    open_store.cache_clear()  # as a process that starts anew
    release(north, task(number=2))
    first, second = entries(north)
    assert (first.patients, second.patients) == (12, 13)
    assert first.patients_digest != second.patients_digest
    assert second.epsilon == epsilon([COST, COST], DELTA)


def test_work_that_fails_is_paid_and_its_repetition_is_not(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it failed may depend on a patient, and is told."""
    follow(monkeypatch, StagePlan())
    for _ in range(2):
        with pytest.raises(RuntimeError), accounted(north, task(), NO_LIMIT):
            raise RuntimeError
    release(north, task())
    assert [entry.release for entry in entries(north)] == [COST]


def test_rows_stay(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, StagePlan())
    release(north, task())
    for statement_ in ("UPDATE releases SET epsilon = 0", "DELETE FROM releases"):
        with pytest.raises(SiteError, match="rows stay"), transaction(north / LEDGER, "") as connection:
            connection.execute(statement_)
    assert len(entries(north)) == 1


def test_only_the_owner_reads_the_ledger(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, StagePlan())
    with accounted(north, task(), NO_LIMIT), transaction(north / LEDGER, "") as connection:
        connection.execute("CREATE TABLE other (x)")
        files = [file for file in (north / "state").iterdir() if file.name.startswith("privacy.sqlite")]
        assert len(files) == 3  # with SQLite's own two
        assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    with transaction(north / LEDGER, "") as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


@pytest.mark.parametrize("content", [b"not a ledger" * 400, b""])
def test_a_damaged_ledger_lets_nothing_leave_and_an_empty_one_is_new(
    north: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    follow(monkeypatch, StagePlan())
    release(north, task())
    (north / LEDGER).write_bytes(content)
    if content:
        with pytest.raises(SiteError, match="must be a ledger that can be used"):
            release(north, task())
    else:
        release(north, task())


# What is refused


def test_no_release_passes_the_cap(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, StagePlan(messages=100))
    two, three = epsilon([COST] * 2, DELTA), epsilon([COST] * 3, DELTA)
    (north / "site.yaml").write_text(f"epsilon_cap: {(two + three) / 2}\n")
    release(north, task(number=1), task(number=2))
    said = refusal(north, task(number=3))
    assert "finetune of study 'tiny' must keep ε <=" in said
    assert "(site.yaml: epsilon_cap)" in said
    release(north, task(number=2))  # is there already
    assert len(entries(north)) == 2
    (north / "site.yaml").write_text(f"epsilon_cap: {three}\n")  # the site's own people may
    release(north, task(number=3))
    other = make_study({"modalities": ["clinical"], "pretrain.rounds": 0, "name": "other"})
    assert "of study 'other'" in refusal(north, task(study=other))


def test_a_study_gets_no_more_than_was_approved_however_often_it_asks(
    north: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = StagePlan({"finetune": COST}, messages=2)
    follow(monkeypatch, plan)
    key = new_key()
    decide(north, key, STUDY, APPROVED)
    limit = accept(north, key.public_key(), task()).max_epsilon
    assert limit == plan.epsilon
    release(north, task(number=1), task(number=2), limit=limit)
    assert "as approved by the site" in refusal(north, task(number=2, value=1.0), limit)
    decide(north, key, STUDY, APPROVED, max_epsilon=2 * limit)
    release(north, task(number=2, value=1.0), limit=accept(north, key.public_key(), task()).max_epsilon)
    with pytest.raises(FedretinaError, match=r"must be <= 0\.1 to be approved"):
        decide(north, key, STUDY, APPROVED, max_epsilon=0.1)


def test_a_study_without_privacy_is_within_no_epsilon(north: Path) -> None:
    with pytest.raises(FedretinaError, match="must be <= 8 to be approved, got 'no privacy'"):
        decide(north, new_key(), STUDY, APPROVED, max_epsilon=8.0)


def test_a_delta_that_is_no_promise_is_refused(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, StagePlan(delta=1e-4))
    assert refusal(north, task()) == "privacy.delta must be <= 1e-05 (site.yaml: delta_cap), got 0.0001"
    (north / "site.yaml").write_text("delta_cap: 0.09\n")
    said = refusal(north, task())
    assert said.startswith("site.yaml: delta_cap must be < 1 / patients of the site, got 0.09")
    (north / "site.yaml").write_text("delta_cap: 0.08\n")
    release(north, task())


def test_what_is_not_private_is_listed_or_kept(north: Path) -> None:
    release(north, task("survey", 0), task(), task())
    assert [(entry.stage, entry.release, entry.epsilon) for entry in entries(north)] == [
        ("survey", None, 0.0),
        ("finetune", None, 0.0),
    ]
    (north / "site.yaml").write_text("releases: private\n")
    assert "finetune of study 'tiny' must be private (site.yaml: releases)" in refusal(north, task(number=2))


# What people see


def test_the_statement_says_what_was_spent_on_what(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, StagePlan({"finetune": COST}))
    release(north, task("survey", 0), task(number=1), task(number=2))
    stated = statement(north)
    assert stated["epsilon_spent"] == epsilon([COST] * 2, DELTA)
    assert stated["epsilon_left"] == 10.0 - stated["epsilon_spent"]
    assert stated["epsilon_spent_rdp"] > stated["epsilon_spent"]
    found = {(stage["stage"], stage["private"], stage["messages"], stage["steps"]) for stage in stated["stages"]}
    assert found == {("finetune", True, 2, 2), ("survey", False, 1, 0)}
    printed = CliRunner().invoke(site_commands, ["ledger", str(north), "--json"], catch_exceptions=False)
    assert json.loads(printed.output) == stated
    shown = CliRunner().invoke(site_commands, ["ledger", str(north)], catch_exceptions=False).output
    assert f"spent ε = {stated['epsilon_spent']:.3f} of 10" in shown
    assert "not private" in shown
    assert "tiny" in shown


def test_a_site_that_released_nothing_says_so(north: Path) -> None:
    shown = CliRunner().invoke(site_commands, ["ledger", str(north)], catch_exceptions=False).output
    assert "spent ε = 0.000 of 10" in shown
    assert "nothing was released" in shown
    assert not (north / LEDGER).exists()


def test_the_review_says_what_the_study_plans_and_where_the_ledger_would_be(
    north: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = StagePlan({"finetune": COST}, messages=4)
    follow(monkeypatch, plan)
    release(north, task(number=1))
    then = forecast(north, STUDY)
    assert then == epsilon([COST] * 5, DELTA)
    text = " ".join("\n".join(review(STUDY, "", None, SiteSettings(), outlook(north, STUDY))).split())
    assert f"ε = {plan.epsilon:.3g} at δ = 1e-05 for each patient" in text
    assert "no bound for what leaves in survey" in text
    assert f"after the whole study it would be {then:.3g}, of 10 that site.yaml allows" in text
    (north / "site.yaml").write_text("epsilon_cap: 0.5\n")
    assert "the site will refuse to go on" in outlook(north, STUDY)


def test_epsilon_over_many_restarts_is_that_of_one_history(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each release is made by a process of its own, which is killed at once."""
    costs = {"survey": Release(20.0, 1.0, 1), "finetune": Release(6.0, 1.0, 2)}
    follow(monkeypatch, StagePlan(costs))
    for number in (0, 1, 2, 2, 3, 4, 5):
        assert in_a_process(partial(release, north, task("finetune" if number else "survey", number)))
    history = [costs["survey"], *[costs["finetune"]] * 5]
    assert len(entries(north)) == 6
    assert entries(north)[-1].epsilon == epsilon(history, DELTA) == pytest.approx(independent(history), rel=0.01)
