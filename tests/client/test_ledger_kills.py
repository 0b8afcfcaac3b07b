"""Does the death of the worker at any statement of a round leave a reply without its row, or two rows?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from client import ledger, work
from client.approvals import APPROVED, decide
from client.ledger import LEDGER, entries
from client.membership import make_keys, own_key
from client.parcels import INBOX, OUTBOX, Parcel
from client.worker import work as answer
from shared.accounting import Release
from shared.messages import Task, Update, task_content
from shared.metrics import empty_scores
from shared.statistics import Statistics
from simulation.grid import LocalGrid
from tests.client.kills import STEP, folder_in_memory, in_a_process
from tests.client.plans import StagePlan, follow
from tests.factories import make_study, small_site

STUDY = make_study({"modalities": ["clinical"], "pretrain.rounds": 0, "finetune.rounds": 999})
FILES = tuple(f"client/{name}.py" for name in ("app", "worker", "ledger", "database", "identity"))


def learned(folder: Path, task: Task) -> Update:
    """An update without any training, which is no statement of the ledger's."""
    return Update("north", task.stage, task.round, task.weights, 5, 0.5, empty_scores(), 0.1)


def counted(history: Sequence[Release], delta: float) -> float:
    """As an ε, but quick."""
    return 0.001 * len(history)


def ask(folder: Path, number: int) -> None:
    """Put the task of a round into the inbox."""
    weights = {"w": np.full(3, number, np.float32)}
    content = task_content(Task(STUDY, "finetune", number, 999, "", Statistics((70.0, 106.0), (5.0, 4.0)), weights))
    (node,) = LocalGrid([folder]).get_node_ids()
    Parcel(folder / INBOX).store(Message(content, node, "train"))


@pytest.fixture
def north() -> Iterator[Path]:
    with folder_in_memory() as folder:
        path = small_site(modalities=(), patients=4).write(folder / "north").path
        make_keys(path)
        yield path


def test_death_at_every_statement_of_a_round(
    north: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    follow(monkeypatch, StagePlan({"finetune": Release(8.0, 1.0, 1)}, messages=9))
    monkeypatch.setattr(ledger, "epsilon", counted)
    monkeypatch.setattr(work, "train_round", learned)
    decide(north, own_key(north), STUDY, APPROVED, max_epsilon=999.0)
    ask(north, 1)
    answer(north)  # what is kept in the process, such as the data, is there before the copies are made
    before = (north / LEDGER).read_bytes()
    outbox, ask_again = Parcel(north / OUTBOX), partial(ask, north, 2)
    ask_again()
    statement, ended = 0, False
    while not ended:
        outbox.clear()
        for file in north.glob(f"{LEDGER}*"):
            file.unlink()
        (north / LEDGER).write_bytes(before)
        ended = in_a_process(partial(answer, north), statement, FILES)
        rows = len(entries(north))
        assert rows in (1, 2)
        assert not outbox.is_there or rows == 2, "a reply that is not in the ledger"
        assert in_a_process(lambda: (answer(north), answer(north)))  # the round is done again, and once more
        assert outbox.load().has_content()
        assert [entry.epsilon for entry in entries(north)] == [0.001, 0.002]
        statement += STEP
    assert statement > 150
