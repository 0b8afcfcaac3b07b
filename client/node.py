"""How does a site take part? It asks the coordinator for tasks, lets its worker do them, and sends the replies.

This process is small and opens no data; the worker beside it does. Either can be killed at any time: messages wait in
parcels.
"""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

from client.approvals import latest_approved
from client.connection import Connection, RunEndedError, UnreachableError
from client.egress import Egress
from client.locking import holding
from client.membership import Membership, read_membership
from client.parcels import DONE, INBOX, OUTBOX, Parcel
from shared.code import ROOT
from shared.errors import CheckpointError, MessageError, SiteError
from shared.messages import error_reply

LOCK = "state/work/lock"
_PAUSE_S = 0.1  # before the coordinator is asked again, which itself waits until there is a task
_RETRY_S = 0.25
_WANTED_S = 2.0  # between two looks whether the work is still wanted
_LONGEST_PAUSE_S = 60.0
_TRIES = 2  # a worker that is killed over one task may have been unlucky once
_END_S = 5.0  # for a worker that has closed its output

log = logging.getLogger(__name__)


def serve(folder: Path, stop: threading.Event) -> None:
    """Take part until ``stop`` is set, through whatever interrupts the connection.

    Raises:
        SiteError: another process serves this folder.
        NotAdmittedError: the coordinator does not let the site in.
    """
    membership = read_membership(folder)
    with _lock(folder):
        worker, egress = _Worker(folder), Egress(folder, membership.key, membership.kit.site)
        pause = _RETRY_S
        if latest_approved(folder, membership.key.public_key()) is not None:
            worker.start()  # it will be asked soon, and takes longer to be there than the connection
        try:
            while not stop.is_set():
                try:
                    with _connect(membership) as connection:
                        log.info("connected to %s as %s", membership.kit.address, membership.kit.site)
                        pause = _RETRY_S
                        _take_part(folder, connection, worker, egress, stop)
                except UnreachableError as error:
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
                    log.warning("%s; next attempt in %g s", error, pause)
                    stop.wait(pause * random.uniform(0.8, 1.2))  # sites that lost one coordinator come back spread out
        finally:
            worker.end()


def _connect(membership: Membership) -> Connection:
    return Connection(membership.kit.address, membership.kit.authority.encode(), membership.key)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    file = folder / LOCK
    file.parent.mkdir(parents=True, exist_ok=True)
    with holding(
        file, SiteError(str(folder), "must be served by one process only", remedy="Stop the other one first.")
    ):
        yield


def _take_part(folder: Path, connection: Connection, worker: _Worker, egress: Egress, stop: threading.Event) -> None:
    inbox, outbox = Parcel(folder / INBOX), Parcel(folder / OUTBOX)
    while not stop.is_set():
        try:
            if outbox.is_there:
                _send(connection, inbox, outbox, egress)
            elif inbox.is_there:
                _work(connection, inbox, outbox, worker, stop)
            elif not connection.pull(inbox):
                stop.wait(_PAUSE_S)
            else:
                log.info("received message %s, %d bytes", inbox.message_id[:12], inbox.size_bytes)
        except (RunEndedError, CheckpointError, MessageError) as error:
            log.log(
                logging.INFO if isinstance(error, RunEndedError) else logging.ERROR,
                "what was being done is dropped: %s",
                error,
            )
            outbox.clear()
            inbox.clear()


def _send(connection: Connection, inbox: Parcel, outbox: Parcel, egress: Egress) -> None:
    """The only way on which what a task asked for leaves the site."""
    if inbox.is_there:
        connection.confirm(inbox)
    egress.let_go(inbox, outbox)
    connection.push(outbox)
    log.info("sent reply %s, %d bytes", outbox.message_id[:12], outbox.size_bytes)
    inbox.clear()
    outbox.clear()


def _work(connection: Connection, inbox: Parcel, outbox: Parcel, worker: _Worker, stop: threading.Event) -> None:
    """Let the worker answer what is in the inbox, for as long as the coordinator wants it."""
    run_id, deaths = inbox.run_id, 0
    while not stop.is_set():
        if not connection.is_wanted(run_id):
            raise RunEndedError("run", "must be running")
        worker.ask()
        while (answer := worker.answered(_WANTED_S)) is None:
            if stop.is_set() or not _is_wanted(connection, run_id):
                worker.end()
                if stop.is_set():
                    return
                raise RunEndedError("run", "must be running")
        if answer or stop.is_set():
            return
        deaths += 1
        log.error("the worker ended over message %s, status %s", inbox.message_id[:12], worker.status)
        if deaths == _TRIES:
            reason = f"the site's worker ended {_TRIES} times over this task, with {worker.status}"
            hint = "; was its memory short?" if worker.status.startswith("signal") else "; see the site's log"
            outbox.store(error_reply(inbox.header(), reason + hint))
            return


def _is_wanted(connection: Connection, run_id: int) -> bool:
    try:
        return connection.is_wanted(run_id)
    except UnreachableError:
        return True  # nobody said otherwise


class _Worker:
    """The process that does the work; started again when it has ended."""

    ARGUMENTS = ("-m", "client.worker")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.status = ""

    def start(self) -> None:
        """Let it be there."""
        if self._process is None or self._process.poll() is not None:
            self.end()
            self._process = subprocess.Popen(
                [sys.executable, *self.ARGUMENTS, str(self.folder.resolve()), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # the selector sees all that is there; nothing is left to write to one that has ended
                cwd=ROOT,  # the code whose digest the site approved; not what the present folder has by that name
                process_group=0,  # Ctrl-C is for this process, which ends the other
            )

    def ask(self) -> None:
        """Let it answer what is in the inbox."""
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; whoever waits for the answer sees it
            self._process.stdin.write(b"work\n")

    def answered(self, timeout_s: float) -> bool | None:
        """True when it is done, False when it ended before; None when neither after the timeout."""
        assert self._process is not None
        assert self._process.stdout is not None
        with DefaultSelector() as selector:
            selector.register(self._process.stdout, EVENT_READ)
            if not selector.select(timeout_s):
                return None
        line = self._process.stdout.readline()
        if line.strip() == DONE.encode():
            return True
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:  # it speaks, but not as agreed
            self._process.kill()
            code = self._process.wait()
        self.status = f"signal {-code}" if code < 0 else f"exit code {code}"
        return False

    def end(self) -> None:
        """Kill it; what it was doing is lost."""
        if self._process is not None:
            self._process.kill()
            with self._process:  # closes the pipes and waits
                pass
            self._process = None
