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
from tests.client.kills import folder_in_memory, in_a_process
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
    follow(monkeypatch, StagePlan({"finetune": Release(8.0, 1.0, 1)}, messages=999))
    monkeypatch.setattr(ledger, "epsilon", counted)
    monkeypatch.setattr(work, "train_round", learned)
    decide(north, own_key(north), STUDY, APPROVED, max_epsilon=999.0)
    ask(north, 0)
    answer(north)  # what is kept in the process, such as the data, is there before the copies are made
    outbox, at_last = Parcel(north / OUTBOX), 1
    while True:
        outbox.clear()
        ask(north, at_last)
        ended = in_a_process(partial(answer, north), at_last - 1, FILES)
        rows = len(entries(north))
        assert rows in (at_last, at_last + 1)
        assert not outbox.is_there or rows == at_last + 1, "a reply that is not in the ledger"
        for _ in range(2):  # the task is done again, and once more
            assert in_a_process(partial(answer, north))
            assert outbox.load().has_content()
            assert len(entries(north)) == at_last + 1
        if ended:
            break
        at_last += 1
    assert at_last > 60  # statements
    assert [entry.round for entry in entries(north)] == list(range(at_last + 1))
    assert entries(north)[-1].epsilon == counted([Release(8.0, 1.0)] * (at_last + 1), 0.0)
    assert (north / LEDGER).stat().st_mode & 0o777 == 0o600
