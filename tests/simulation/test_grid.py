"""Is the in-process grid a Flower grid, and are the internals of Flower that it needs still as it takes them?"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client import work
from shared.errors import ConfigError, SiteError
from shared.messages import Task, decode_survey, task_content
from simulation.grid import LocalGrid
from tests.server.federations import clinical_sites, clinical_study

STUDY = clinical_study()


@pytest.fixture
def sites(tmp_path: Path) -> list[Path]:
    return clinical_sites(tmp_path, count=3, patients=20)


def survey_messages(grid: LocalGrid) -> list[Message]:
    content = task_content(Task(STUDY, "survey", 0, 0, "", None, {}))
    return [Message(content, node, MessageType.QUERY) for node in grid.get_node_ids()]


# The internals of Flower


def test_interface_of_grid_is_the_one_that_is_implemented() -> None:
    assert Grid.__abstractmethods__ == {
        "run",
        "set_run",
        "create_message",
        "get_node_ids",
        "push_messages",
        "pull_messages",
        "send_and_receive",
    }
    for name in sorted(Grid.__abstractmethods__ - {"run"}):
        ours, theirs = (list(inspect.signature(getattr(kind, name)).parameters) for kind in (LocalGrid, Grid))
        assert ours == theirs, name


def test_task_identity_is_what_a_message_takes_its_sender_from(
    sites: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TaskIdentity, "_run_id", None)  # as in a process that has sent nothing
    LocalGrid(sites)
    assert (TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id) == (1, 1, 1)
    LocalGrid([])  # gives the message a sender
    message = Message(RecordDict(), 2, MessageType.QUERY)
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.dst_node_id) == (1, 1, 2)


def test_message_id_is_the_attribute_that_replies_refer_to() -> None:
    LocalGrid([])  # gives the message a sender
    message = Message(RecordDict(), 2, MessageType.QUERY)
    assert "_message_id" in message.metadata.__dict__
    message.metadata.__dict__["_message_id"] = "77"
    assert message.metadata.message_id == "77"
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "77"


def test_run_is_one_that_flower_makes(sites: list[Path]) -> None:
    run = LocalGrid(sites).run
    assert isinstance(run, Run)
    assert run.run_id == 1


# The grid


def test_replies_answer_the_messages_that_were_pushed(sites: list[Path]) -> None:
    grid = LocalGrid(sites)
    ids = list(grid.push_messages(survey_messages(grid)))
    assert len(set(ids)) == 3
    for message_id, site in zip(ids, sites, strict=True):
        (reply,) = grid.pull_messages([message_id])
        assert reply.metadata.reply_to_message_id == message_id
        assert decode_survey(reply.content, STUDY).site == site.name
        assert list(grid.pull_messages([message_id])) == []  # once only
    assert list(grid.pull_messages(["unknown"])) == []


def test_one_client_runs_for_one_pull(sites: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    survey = work.survey

    def noted(folder: Path, task: Task) -> object:
        done.append(folder.name)
        return survey(folder, task)

    monkeypatch.setattr(work, "survey", noted)
    grid = LocalGrid(sites)
    ids = list(grid.push_messages(survey_messages(grid)))
    assert done == []
    for count in (1, 2, 3):
        assert len(list(grid.pull_messages(ids))) == 1
        assert len(done) == count
    assert sorted(done) == [site.name for site in sites]
    assert list(grid.pull_messages(ids)) == []


def test_send_and_receive_gives_every_reply_in_order(sites: list[Path]) -> None:
    grid = LocalGrid(sites)
    replies = list(grid.send_and_receive(survey_messages(grid), timeout=5))
    assert [decode_survey(reply.content, STUDY).site for reply in replies] == [site.name for site in sites]


def test_message_to_an_unknown_node_is_refused(sites: list[Path]) -> None:
    grid = LocalGrid(sites)
    message = grid.create_message(RecordDict(), MessageType.QUERY, 99, "group")
    with pytest.raises(ConfigError, match="must be a node of the grid, got 99"):
        grid.push_messages([message])


def test_failing_client_answers_with_an_error(sites: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, task: Task) -> object:
        raise SiteError("site x", "must work") if folder == sites[0] else RuntimeError("secret")

    monkeypatch.setattr(work, "survey", fail)
    grid = LocalGrid(sites)
    replies = list(grid.send_and_receive(survey_messages(grid)))
    first, *others = [reply.error.reason for reply in replies]
    assert first == "site x must work"
    for reason in others:
        assert re.fullmatch(r"RuntimeError, reference [0-9a-f]{8} in the site's log", reason)


def test_task_of_another_protocol_is_answered_with_an_error(sites: list[Path]) -> None:
    grid = LocalGrid(sites)
    content = RecordDict({"config": ConfigRecord({"protocol": 0})})
    (reply,) = grid.send_and_receive([Message(content, 2, MessageType.QUERY)])
    assert "task.protocol must be 1, got 0" in reply.error.reason
