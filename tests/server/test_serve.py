"""Does a coordinator go on whatever ends of it, give up what cannot be done, and leave no process behind?"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from server import serve as serving
from server.coordinator import FAILED, FINISHED, RUNNING, STOPPED, WAITING, RunFolder, Settings, create_run, init
from server.serve import is_served, serve
from shared.errors import ConfigError
from tests.factories import make_study
from tests.server.links import wait_for

# In place of ``python -m server.door FOLDER PARENT`` and ``python -m server.app FOLDER RUN``: each notes who it is, and
# does what the test has written into a file of its name.
STAND_IN = """#!{python} -S
import os, signal, sys, time
from pathlib import Path
module, folder, name = sys.argv[2:5]
place = Path(folder)
name = "link" if module == "server.door" else name
with open(place / f"{{name}}.pids", "a") as stream:
    stream.write(f"{{os.getpid()}}\\n")
does = (place / f"{{name}}.does").read_text() if (place / f"{{name}}.does").exists() else "stay"
if does in ("finish", "fail"):
    (place / "draft").write_text('{{"status": "' + does + 'ed", "reason": ""}}')
    os.replace(place / "draft", place / "runs" / name / "status.json")
    time.sleep(0.3)  # as a process needs to end
    sys.exit(does == "fail")
if does == "crash":
    sys.exit(7)
if does == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
while does in ("stay", "deaf"):
    time.sleep(0.05)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    for name, value in {"_LOOK_S": 0.02, "_FIRST_PAUSE_S": 0.05, "_LONGEST_PAUSE_S": 0.2}.items():
        monkeypatch.setattr(serving, name, value)
    init(tmp_path / "coordinator", Settings())
    return tmp_path / "coordinator"


@contextmanager
def served(folder: Path) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(folder, stop), daemon=True)
    thread.start()
    try:
        wait_for(lambda: bool(pids(folder, "link")))
        yield
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
        assert not any(lives(pid) for file in folder.glob("*.pids") for pid in pids(folder, file.stem))


def pids(folder: Path, name: str) -> list[int]:
    file = folder / f"{name}.pids"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def run(folder: Path, name: str, does: str = "stay") -> RunFolder:
    (folder / f"{name}.does").write_text(does)
    return create_run(folder, make_study(), name)


def test_the_link_is_started_again_when_it_is_killed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with served(folder):
        for ends in (1, 2):
            os.kill(pids(folder, "link")[-1], signal.SIGKILL)
            wait_for(lambda ends=ends: len(pids(folder, "link")) == ends + 1)  # type: ignore[misc]
    assert "link ended with -9; started again in" in caplog.text


def test_a_study_is_started_again_when_it_is_killed(folder: Path) -> None:
    own = run(folder, "a")
    with served(folder):
        wait_for(lambda: len(pids(folder, "a")) == 1)
        assert own.status.status == RUNNING
        os.kill(pids(folder, "a")[0], signal.SIGKILL)
        wait_for(lambda: len(pids(folder, "a")) == 2)
        assert len(pids(folder, "link")) == 1  # which went on


def test_pauses_grow_and_are_forgotten_when_something_came_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("server.serve.time", SimpleNamespace(monotonic=lambda: now[0]))
    (folder / "x.does").write_text("crash")
    child = serving._Child("x", "server.app", str(folder), "x")

    def end_after(seconds: float, well: bool = False) -> float:
        child.keep(False)
        wait_for(lambda: child.code is not None)
        now[0] += seconds
        child.keep(well)
        pause = child._not_before - now[0]
        now[0] = child._not_before
        return round(pause, 3)

    assert [end_after(1.0) for _ in range(5)] == [0.05, 0.1, 0.2, 0.2, 0.2]
    assert (child.ends, child.code) == (5, 7)
    assert end_after(1.0, well=True) == 0.05
    assert (child.ends, child.code) == (1, 7)


def test_time_in_which_a_process_was_not_there_is_not_steady(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("server.serve.time", SimpleNamespace(monotonic=lambda: now[0]))
    child = serving._Child("x", "server.app", str(folder), "x")
    assert child.seconds == 0.0
    child.keep(False)
    now[0] += 30.0
    assert child.seconds == 30.0
    child.end()
    now[0] += 30.0
    assert child.seconds == 0.0


def test_a_study_that_ends_again_and_again_has_failed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_MOST_ENDS", 3)
    own, other = run(folder, "a", "crash"), run(folder, "b")
    os.utime(own.folder / "study.json", (1000, 1000))
    with served(folder):
        wait_for(lambda: own.status.status == FAILED)
        assert own.status.reason == "its process ended 3 times, last with 7; see the log"
        wait_for(lambda: other.status.status == RUNNING)  # whose turn it is then
    assert len(pids(folder, "a")) == 3


@pytest.mark.parametrize(("does", "status"), [("finish", FINISHED), ("fail", FAILED)])
def test_a_study_that_says_that_it_has_ended_is_not_started_again(
    folder: Path, does: str, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.serve")
    first, second = run(folder, "a", does), run(folder, "b", does)
    with served(folder):
        wait_for(lambda: first.status.status == second.status.status == status)
        wait_for(lambda: f"a: {status}" in caplog.text and f"b: {status}" in caplog.text)
    assert len(pids(folder, "a")) == len(pids(folder, "b")) == 1


def test_studies_are_run_one_after_the_other_the_oldest_first(folder: Path) -> None:
    young, old = run(folder, "a"), run(folder, "b")
    os.utime(old.folder / "study.json", (1000, 1000))
    with served(folder):
        wait_for(lambda: old.status.status == RUNNING)
        assert young.status.status == WAITING
        assert pids(folder, "a") == []


@pytest.mark.parametrize("does", ["stay", "deaf"])
def test_a_study_is_stopped_and_goes_on(folder: Path, does: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_END_S", 0.3)
    own = run(folder, "a", does)
    with served(folder):
        wait_for(lambda: len(pids(folder, "a")) == 1 and own.status.status == RUNNING)
        own.ask_to_stop()
        wait_for(lambda: own.status.status == STOPPED)
        assert not lives(pids(folder, "a")[0])
        own.go_on()
        wait_for(lambda: len(pids(folder, "a")) == 2)


def test_a_run_that_was_on_when_the_coordinator_ended_goes_on(folder: Path) -> None:
    own = run(folder, "a")
    with served(folder):
        wait_for(lambda: len(pids(folder, "a")) == 1)
    assert own.status.status == RUNNING
    with served(folder):
        wait_for(lambda: len(pids(folder, "a")) == 2)


def test_a_folder_is_served_by_one_process(folder: Path) -> None:
    assert not is_served(folder)
    with served(folder):
        assert is_served(folder)
        with pytest.raises(ConfigError, match="must be served by one process only"):
            serve(folder, threading.Event())
        assert is_served(folder)
    assert not is_served(folder)
    with served(folder):
        pass


def test_a_folder_without_a_coordinator_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must hold a coordinator"):
        serve(tmp_path, threading.Event())
    assert not is_served(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_link_learns_whose_child_it_is(folder: Path) -> None:
    child = f"{sys.executable} -m server.door {folder} {os.getpid()}"
    with served(folder):
        line = Path(f"/proc/{pids(folder, 'link')[0]}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    assert line.strip().endswith(child.split(" ", 1)[1])
