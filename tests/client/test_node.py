"""Does a site go on through whatever happens to its worker, its disk and its connection?"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from flwr.app import Message, RecordDict

from client import node
from client.approvals import APPROVED, REFUSED, decide, revoke
from client.connection import Connection, NotAdmittedError, RunEndedError, UnreachableError
from client.membership import KIT, PRIVATE_KEY, make_keys, own_key
from client.node import serve
from client.parcels import INBOX, OUTBOX, Parcel
from client.worker import work
from shared.code import ROOT
from shared.errors import MessageError, SiteError
from shared.files import write_atomic
from shared.messages import AWAITS_APPROVAL, FAILED_AT_SITE, Task, decode_survey, task_content
from simulation.grid import LocalGrid
from tests.e2e.nursery import python
from tests.factories import make_study, small_site
from tests.memberships import make_kit

STUDY = make_study({"modalities": ["clinical"], "pretrain.rounds": 0})
PATIENCE_S = 20.0


@pytest.fixture
def north(tmp_path: Path) -> Path:
    path = small_site(modalities=()).write(tmp_path / "north").path
    make_keys(path)
    write_atomic(path / KIT, make_kit("north", own_key(path)).to_json().encode())
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PAUSE_S", "_RETRY_S", "_WANTED_S"):
        monkeypatch.setattr(node, name, 0.05)


def survey_message(folder: Path) -> Message:
    """A message as it comes from a coordinator."""
    (destination,) = LocalGrid([folder]).get_node_ids()
    return Message(task_content(Task(STUDY, "survey", 0, 0, "", None, {})), destination, "query")


class Coordinator:
    """The other end of a connection, in this process."""

    def __init__(self, *messages: Message) -> None:
        self.messages, self.replies, self.confirmed = list(messages), list[Message](), list[str]()
        self.wanted: Callable[[], bool] = lambda: True
        self.troubles: list[Exception] = []  # that the next calls meet, first to last

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _trouble(self) -> None:
        if self.troubles:
            raise self.troubles.pop(0)

    def pull(self, inbox: Parcel) -> bool:
        self._trouble()
        if not self.messages:
            return False
        inbox.store(self.messages.pop(0))
        return True

    def confirm(self, inbox: Parcel) -> None:
        self.confirmed.append(inbox.message_id)

    def push(self, outbox: Parcel) -> None:
        self._trouble()
        self.replies.append(outbox.load())

    def is_wanted(self, run_id: int) -> bool:
        return self.wanted()


class Service:
    """A node that serves in a thread, against a coordinator in this process."""

    def __init__(self, folder: Path, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stop, self.coordinator = threading.Event(), coordinator
        monkeypatch.setattr(node, "_connect", lambda membership: coordinator)
        self._thread = threading.Thread(target=serve, args=(folder, self.stop), daemon=True)

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, "waited too long"
            assert self._thread.is_alive() or holds(), "the node ended"
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def worker_program(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let the node start this program in the worker's place; ``sys.argv[1]`` is the folder."""
    monkeypatch.setattr(node._Worker, "ARGUMENTS", ("-c", f"import os, sys, time\n{program}"))


ANSWERS = """
import os, sys
from pathlib import Path
from client.parcels import INBOX, OUTBOX, Parcel
from flwr.app import Message
from shared.messages import SurveyReply, survey_content
from shared.statistics import Survey
folder = Path(sys.argv[1])
survey = SurveyReply("north", Survey(counts=(0, 0), sums=(0.0, 0.0), squares=(0.0, 0.0)))
for _ in sys.stdin:
    (folder / "asked").open("a").write("x")
    Parcel(folder / OUTBOX).store(Message(survey_content(survey), reply_to=Parcel(folder / INBOX).load()))
    print("done", flush=True)
"""


def answering_worker(folder: Path, monkeypatch: pytest.MonkeyPatch, first: str = "") -> None:
    """Let the node start a worker that answers each task with a survey."""
    as_module(folder, monkeypatch, "answers", first + ANSWERS)
    monkeypatch.setattr(sys, "executable", python())
    monkeypatch.setattr(node._Worker, "ARGUMENTS", ("-m", "answers"))


def as_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, program: str) -> None:
    """A program that a new process finds as a module of this name."""
    (folder.parent / f"{name}.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))


def test_a_message_is_done_by_the_worker_and_answered(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real worker: a process of its own, which asks the gate and the store."""
    monkeypatch.setattr(sys, "executable", python())
    decide(north, own_key(north), STUDY, APPROVED)
    message = survey_message(north)
    coordinator = Coordinator(message)
    with Service(north, coordinator, monkeypatch) as service:
        service.until(lambda: bool(coordinator.replies))
    (reply,) = coordinator.replies
    assert decode_survey(reply.content, STUDY).survey.patients == 12
    assert reply.metadata.reply_to_message_id == message.object_id
    assert coordinator.confirmed == [message.object_id]
    assert not (north / INBOX).exists()
    assert not (north / OUTBOX).exists()


def test_one_warm_worker_does_all(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering_worker(north, monkeypatch, "import os, sys\nopen(os.path.join(sys.argv[1], 'started'), 'a').write('x')\n")
    coordinator = Coordinator(*(survey_message(north) for _ in range(3)))
    with Service(north, coordinator, monkeypatch) as service:
        service.until(lambda: len(coordinator.replies) == 3)
    assert (north / "started").read_text() == "x"
    assert (north / "asked").read_text() == "xxx"


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os.kill(os.getpid(), 9)", "with signal 9; was its memory short?"),
        ("sys.exit(3)", "with exit code 3; see the site's log"),
        ("print('not as agreed', flush=True); time.sleep(60)", "with signal 9; was its memory short?"),
    ],
)
def test_a_worker_that_ends_twice_over_a_task_is_answered_by_that(
    north: Path, monkeypatch: pytest.MonkeyPatch, end: str, status: str
) -> None:
    monkeypatch.setattr(node, "_END_S", 0.2)
    worker_program(
        monkeypatch, f"sys.stdin.readline(); open(os.path.join(sys.argv[1], 'tried'), 'a').write('x')\n{end}"
    )
    coordinator = Coordinator(survey_message(north))
    with Service(north, coordinator, monkeypatch) as service:
        service.until(lambda: bool(coordinator.replies))
    (reply,) = coordinator.replies
    assert reply.error.code == FAILED_AT_SITE
    assert reply.error.reason == f"the site's worker ended 2 times over this task, {status}"
    assert (north / "tried").read_text() == "xx"


def test_a_worker_that_ends_once_gets_another_chance(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = "import os, sys\nmark = os.path.join(sys.argv[1], 'tried')\n"
    answering_worker(north, monkeypatch, mark + "if not os.path.exists(mark): open(mark, 'w'); os.abort()\n")
    coordinator = Coordinator(survey_message(north))
    with Service(north, coordinator, monkeypatch) as service:
        service.until(lambda: bool(coordinator.replies))
    assert coordinator.replies[0].has_content()


def test_work_that_is_no_longer_wanted_is_ended(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker_program(monkeypatch, "open(os.path.join(sys.argv[1], 'pid'), 'w').write(f'{os.getpid()} ')\ntime.sleep(60)")
    coordinator = Coordinator(survey_message(north))
    pid = north / "pid"
    with Service(north, coordinator, monkeypatch) as service:
        service.until(lambda: pid.exists() and pid.read_text().endswith(" "))
        coordinator.wanted = lambda: False
        service.until(lambda: not (north / INBOX).exists())
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
        coordinator.wanted = lambda: True
        answering_worker(north, monkeypatch)
        coordinator.messages.append(survey_message(north))
        service.until(lambda: bool(coordinator.replies))


def test_a_site_that_is_stopped_keeps_its_task_for_when_it_comes_back(
    north: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_program(monkeypatch, "open(os.path.join(sys.argv[1], 'pid'), 'w')\ntime.sleep(60)")
    coordinator = Coordinator(survey_message(north))
    with Service(north, coordinator, monkeypatch) as service:
        service.until(lambda: (north / "pid").exists())
    assert Parcel(north / INBOX).is_there
    assert coordinator.replies == []
    answering_worker(north, monkeypatch)
    with Service(north, coordinator, monkeypatch) as service:
        service.until(lambda: bool(coordinator.replies))


def test_a_reply_that_was_not_sent_is_sent_without_doing_the_work_again(
    north: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = survey_message(north)
    Parcel(north / INBOX).store(message)
    Parcel(north / OUTBOX).store(Message(RecordDict(), reply_to=Parcel(north / INBOX).header()))
    worker_program(monkeypatch, "raise SystemExit('not to be started')")
    coordinator = Coordinator()
    with Service(north, coordinator, monkeypatch) as service:
        service.until(lambda: not (north / OUTBOX).exists())
    assert [reply.metadata.reply_to_message_id for reply in coordinator.replies] == [message.object_id]


@pytest.mark.parametrize(
    "trouble", [RunEndedError("run", "must be running"), MessageError("message", "must name its parts by SHA-256")]
)
def test_a_message_that_comes_to_nothing_does_not_stop_the_site(
    north: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    answering_worker(north, monkeypatch)
    coordinator = Coordinator(survey_message(north))
    coordinator.troubles = [trouble]
    with Service(north, coordinator, monkeypatch) as service:
        service.until(lambda: bool(coordinator.replies))


@pytest.mark.parametrize("damaged", [INBOX, OUTBOX])
def test_a_damaged_message_is_dropped(north: Path, monkeypatch: pytest.MonkeyPatch, damaged: str) -> None:
    Parcel(north / INBOX).store(survey_message(north))
    Parcel(north / OUTBOX).store(Message(RecordDict(), reply_to=Parcel(north / INBOX).header()))
    if damaged == INBOX:
        Parcel(north / OUTBOX).clear()
    for file in (north / damaged).iterdir():
        file.write_bytes(b"\xff")
    answering_worker(north, monkeypatch)
    later = survey_message(north)
    coordinator = Coordinator(later)
    with Service(north, coordinator, monkeypatch) as service:
        service.until(lambda: bool(coordinator.replies))
    assert [reply.metadata.reply_to_message_id for reply in coordinator.replies] == [later.object_id]


def test_a_coordinator_that_is_away_is_tried_again(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering_worker(north, monkeypatch)
    coordinator = Coordinator(survey_message(north))
    coordinator.troubles = [UnreachableError("c:1", "must be reachable") for _ in range(3)]
    with Service(north, coordinator, monkeypatch) as service:
        service.until(lambda: bool(coordinator.replies))


def test_who_is_not_admitted_ends_and_says_so(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = Coordinator()
    coordinator.troubles = [NotAdmittedError("c:1", "must know the site's key")]
    monkeypatch.setattr(node, "_connect", lambda membership: coordinator)
    with pytest.raises(NotAdmittedError):
        serve(north, threading.Event())


def test_one_process_serves_a_folder(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering_worker(north, monkeypatch)
    coordinator = Coordinator(survey_message(north))
    with Service(north, coordinator, monkeypatch) as service:
        service.until(lambda: bool(coordinator.replies))
        stopped = threading.Event()
        timer = threading.Timer(2.0, stopped.set)  # or else this test would never end where it should fail
        timer.start()
        with pytest.raises(SiteError, match="must be served by one process only"):
            serve(north, stopped)
        timer.cancel()
    stopped.set()
    serve(north, stopped)  # the lock is free again


# The worker's own


@pytest.fixture
def silent(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL, "client"):
        yield


def answered(folder: Path) -> Message:
    Parcel(folder / INBOX).store(survey_message(folder))
    work(folder)
    return Parcel(folder / OUTBOX).load()


@pytest.mark.usefixtures("silent")
def test_nothing_is_read_before_the_gate_opened(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any) -> Any:
        raise AssertionError("the site's data was read")

    with monkeypatch.context() as patched:
        patched.setattr("client.work.survey", read)
        reply = answered(north)
        assert reply.error.code == AWAITS_APPROVAL
        decide(north, own_key(north), STUDY, REFUSED)
        reply = answered(north)
        assert reply.error.code == FAILED_AT_SITE
        assert "got 'refused'" in cast(str, reply.error.reason)
    decide(north, own_key(north), STUDY, APPROVED)
    assert answered(north).has_content()


@pytest.mark.usefixtures("silent")
def test_what_was_revoked_during_the_work_is_not_sent(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from client import work as doing

    decide(north, own_key(north), STUDY, APPROVED)
    survey = doing.survey

    def survey_while_somebody_revokes(folder: Path, task: Task) -> object:
        done = survey(folder, task)
        revoke(folder, own_key(folder), STUDY)
        return done

    monkeypatch.setattr(doing, "survey", survey_while_somebody_revokes)
    reply = answered(north)
    assert reply.has_error()
    assert "got 'revoked'" in cast(str, reply.error.reason)


@pytest.mark.usefixtures("silent")
def test_a_site_without_a_usable_key_approves_nothing_and_names_no_folder(north: Path) -> None:
    decide(north, own_key(north), STUDY, APPROVED)
    (north / PRIVATE_KEY).chmod(0o644)
    reply = answered(north)
    assert reply.error.reason == "key of the site must be usable. The site's log says more."


@pytest.mark.usefixtures("silent")
def test_a_message_that_was_damaged_on_disk_is_answered_by_that(north: Path) -> None:
    inbox = Parcel(north / INBOX)
    inbox.store(survey_message(north))
    (inbox.folder / inbox.message_id).write_bytes(b"damaged")
    work(north)
    assert Parcel(north / OUTBOX).load().error.reason == "the message was damaged on the site's disk"


def test_what_a_library_prints_is_no_answer(north: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import os, sys; from client import worker\n"
        "worker.work = lambda folder: (print('done'), os.system('echo done'))\n"
        "sys.argv = ['worker', sys.argv[1], str(os.getppid())]; worker.main()"
    )
    as_module(north, monkeypatch, "printing", program)
    command = [python(), "-m", "printing", str(north)]
    found = subprocess.run(command, input=b"work\nwork\n", capture_output=True, cwd=ROOT, timeout=60, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout == b"done\ndone\n"  # one for each time that it was asked
    assert found.stderr.count(b"done") == 4


def test_a_worker_leaves_it_to_the_node_when_it_ends(north: Path) -> None:
    """Ctrl-C and systemd's SIGTERM reach both."""
    command = [python(), "-m", "client.worker", str(north), str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(2):
            Parcel(north / INBOX).store(survey_message(north))
            process.stdin.write(b"work\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"done\n"
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
        process.stdin.close()
        assert process.wait(10) == 0
    assert Parcel(north / OUTBOX).load().error.code == AWAITS_APPROVAL


def test_the_connection_of_these_tests_is_like_the_real_one() -> None:
    for name in ("pull", "confirm", "push", "is_wanted"):
        ours, real = getattr(Coordinator, name), getattr(Connection, name)
        assert (
            ours.__code__.co_varnames[: ours.__code__.co_argcount]
            == real.__code__.co_varnames[: real.__code__.co_argcount]
        )
