"""Does a site answer every message, and never say more than it may?"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from client import work
from shared.config import FINETUNE
from shared.messages import (
    CONFIG,
    Task,
    decode_evaluation,
    decode_survey,
    decode_update,
    task_content,
)
from shared.objectives.registry import build_objective
from shared.statistics import Statistics
from shared.weights import read_weights
from simulation.grid import LocalGrid
from tests.factories import make_study, small_site

STUDY = make_study()
STATISTICS = Statistics((70.0, 106.0), (5.0, 4.0), 0.5)
WEIGHTS = read_weights(build_objective(STUDY, FINETUNE, STATISTICS))
SURVEY = Task(STUDY, "survey", 0, 0, "", None, {})
TRAIN = Task(STUDY, "finetune", 1, 1, "", STATISTICS, WEIGHTS)
EVALUATE = Task(STUDY, "evaluate", 0, 0, "held_out", STATISTICS, WEIGHTS)


@pytest.fixture
def north(tmp_path: Path) -> Path:
    return small_site(patients=30).write(tmp_path / "north").path


def ask(folder: Path, kind: str, content: RecordDict) -> Message:
    grid = LocalGrid([folder])
    (node,) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([Message(content, node, kind)])
    return reply


def reason(folder: Path, kind: str, content: RecordDict) -> str:
    reply = ask(folder, kind, content)
    assert reply.has_error()
    assert reply.error.code >= 1000
    return str(reply.error.reason)


def test_each_kind_of_message_gets_its_own_answer(north: Path) -> None:
    survey = decode_survey(ask(north, "query", task_content(SURVEY)).content, STUDY)
    assert (survey.site, survey.survey.patients) == ("north", 30)
    update = decode_update(ask(north, "train", task_content(TRAIN)).content, WEIGHTS)
    assert update.site == "north"
    assert update.examples == survey.survey.train_cases
    assert decode_evaluation(ask(north, "evaluate", task_content(EVALUATE)).content).scores.cases > 0


def test_our_errors_carry_their_reason(north: Path) -> None:
    content = task_content(TRAIN)
    content.config_records[CONFIG]["protocol"] = 99
    assert reason(north, "train", content) == (
        "task.protocol must be 1, got 99. Install the same version of fedretina at the coordinator and the site."
    )
    assert "must have a record config" in reason(north, "train", RecordDict({"x": ConfigRecord({})}))


def test_a_fault_of_the_site_is_named(tmp_path: Path) -> None:
    path = small_site(labelled=0).write(tmp_path / "s").path
    assert reason(path, "train", task_content(TRAIN)).startswith("site north: split train must not be empty")


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError, OSError, AssertionError])
def test_an_unexpected_error_says_its_type_and_nothing_more(
    north: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error("cannot read /scans/Jane_Doe_1950.png")

    for name, kind, task in (
        ("survey", "query", SURVEY),
        ("train_round", "train", TRAIN),
        ("evaluate_split", "evaluate", EVALUATE),
    ):
        monkeypatch.setattr(work, name, fail)
        with caplog.at_level(logging.CRITICAL, "client.app"):
            reply = ask(north, kind, task_content(task))
        assert reply.has_error()
        assert re.fullmatch(rf"{error.__name__}, reference [0-9a-f]{{8}} in the site's log", reply.error.reason)
        assert "Jane" not in repr(reply)


def test_the_site_itself_is_told_everything(
    north: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("cannot read /scans/Jane_Doe_1950.png")

    monkeypatch.setattr(work, "survey", fail)
    with caplog.at_level(logging.ERROR, "client.app"):
        ask(north, "query", task_content(SURVEY))
    assert "Jane_Doe_1950.png" in caplog.text


def rename_scan(path: Path, row: int, to: str, *, make: bool = False, content: bytes = b"no image") -> None:
    index = pd.read_parquet(path / "imaging/index.parquet")
    index["path"] = [to if i == row else old for i, old in enumerate(index["path"])]
    index.to_parquet(path / "imaging/index.parquet")
    if make:
        (path / "imaging/files" / to).write_bytes(content)


def unreadable(path: Path) -> None:
    for row in range(10):
        rename_scan(path, row, f"Jane_Doe_{row}.png", make=True)


def lost(path: Path) -> None:
    rename_scan(path, 0, "Jane_Doe.png")


def twice(path: Path) -> None:
    index = pd.read_parquet(path / "imaging/index.parquet")
    index["image_id"] = ["Jane_Doe" if i < 2 else old for i, old in enumerate(index["image_id"])]
    index.to_parquet(path / "imaging/index.parquet")


def odd_pair(path: Path) -> None:
    index = pd.read_parquet(path / "imaging/index.parquet")
    index["pair_id"] = "Jane_Doe"
    index.to_parquet(path / "imaging/index.parquet")


def odd_code(path: Path) -> None:
    events = pd.read_parquet(path / "events.parquet")
    events["code"] = [f"Jane_Doe//{code}" for code in events["code"]]
    events.to_parquet(path / "events.parquet")


@pytest.mark.parametrize("damage", [unreadable, lost, twice, odd_pair, odd_code])
def test_values_of_the_folder_never_leave_in_an_error(north: Path, damage: Callable[[Path], None]) -> None:
    """File names, image ids and codes of a hospital's export may name its patients."""
    damage(north)
    said = reason(north, "query", task_content(SURVEY))
    assert "Jane" not in said
    assert str(north) not in said
    assert said in (
        "site folder breaks the contract in 1 place(s); there, fedretina site check lists them",
        "site folder breaks the contract in 2 place(s); there, fedretina site check lists them",
        "site north: unreadable scans must be at most 5% of all (site.yaml: quarantine_limit). "
        "The log of the site names them.",
    )


def test_an_error_does_not_say_where_the_sites_folder_is(north: Path) -> None:
    (north / "site.yaml").write_text("{")
    said = reason(north, "query", task_content(SURVEY))
    assert "site.yaml must be valid YAML" in said
    assert str(north) not in said
