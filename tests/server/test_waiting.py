"""Does a site hear of a task when it is there, and neither before nor long after?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from flwr.app import Message

from client.parcels import Parcel
from server.coordinator import DATABASE
from server.grid import LinkGrid, running_grid
from server.waiting import Waiting
from tests.server.links import Link, link, task

LONG_S = 20.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Link]:
    with link(tmp_path / "coordinator") as place:
        yield place


@pytest.fixture
def grid(place: Link) -> Iterator[LinkGrid]:
    with running_grid(place.state) as grid:
        yield grid


@pytest.fixture
def waiting(place: Link, grid: LinkGrid) -> Iterator[Waiting]:
    with closing(Waiting(place.folder / DATABASE, LONG_S)) as waiting:
        yield waiting


def test_question_is_answered_when_the_task_comes(place: Link, grid: LinkGrid, waiting: Waiting) -> None:
    place.enrol("north")
    place.enrol("south")
    north, south = place.node("north"), place.node("south")

    async def ask() -> tuple[bool, bool]:
        question = asyncio.create_task(waiting.for_task(north))
        await asyncio.sleep(0.2)
        early = question.done()
        await asyncio.to_thread(grid.push_messages, [task(south)])  # of another site
        await asyncio.sleep(0.2)
        early |= question.done()
        await asyncio.to_thread(grid.push_messages, [task(north)])
        return early, await question

    started = time.monotonic()
    assert asyncio.run(ask()) == (False, True)
    assert time.monotonic() - started < LONG_S


def test_question_is_answered_in_time_when_no_task_comes(place: Link, grid: LinkGrid, waiting: Waiting) -> None:
    place.enrol("north")
    with closing(Waiting(place.folder / DATABASE, hold_s=0.1)) as impatient:
        assert not asyncio.run(impatient.for_task(place.node("north")))
    waiting.is_ending = lambda: True  # the link is told to stop
    assert not asyncio.run(waiting.for_task(place.node("north")))


def test_task_is_there_when_all_of_it_is(
    place: Link, grid: LinkGrid, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.enrol("north")
    node = place.node("north")
    store, seen = grid.state.store_object, []

    def look_and_store(*arguments: object) -> bool:
        with closing(Waiting(place.folder / DATABASE, hold_s=0.0)) as now:
            seen.append(asyncio.run(now.for_task(node)))
        return bool(store(*arguments))

    monkeypatch.setattr(grid.state, "store_object", look_and_store)
    grid.push_messages([task(node)])
    assert seen
    assert not any(seen)
    assert asyncio.run(waiting.for_task(node))


def test_task_that_the_site_has_got_is_not_there_for_it_again(
    place: Link, grid: LinkGrid, waiting: Waiting, tmp_path: Path
) -> None:
    key = place.enrol("north")
    messages: list[Message] = [task(place.node("north"))]
    grid.push_messages(messages)
    with place.connect(key) as connection:
        assert connection.pull(Parcel(tmp_path / "inbox"))
    with closing(Waiting(place.folder / DATABASE, hold_s=0.1)) as impatient:
        assert not asyncio.run(impatient.for_task(place.node("north")))
