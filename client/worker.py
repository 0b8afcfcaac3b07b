"""What does the work at a site? One warm process of the installed code: inbox, gate, work, outbox.

The node starts it, asks it by a line on its standard input, hears of the end by a line on its standard output, and may
kill it at any time: all it holds between messages is what it can compute again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from flwr.app import Context, RecordDict

from client.app import SITE, build_app
from client.approvals import Decision, NotApprovedError, accept
from client.ledger import accounted
from client.membership import own_key
from client.parcels import DONE, INBOX, LOG, OUTBOX, Parcel
from client.site import read_settings
from shared.config import SecAgg
from shared.errors import CheckpointError, KeyFileError, MessageError
from shared.logs import log_to
from shared.memory import keep_freed
from shared.messages import Task, error_reply
from shared.processes import end_with_parent
from shared.secure_aggregation.steps import Advertise, Share, Unmask

log = logging.getLogger("client.worker")


def work(folder: Path) -> None:
    """Answer the message in the inbox."""
    inbox, outbox = Parcel(folder / INBOX), Parcel(folder / OUTBOX)

    try:
        message = inbox.load()
    except CheckpointError as error:
        log.error("%s", error)
        outbox.store(error_reply(inbox.header(), "the message was damaged on the site's disk"))
        return
    except MessageError as error:
        log.error("%s", error)
        outbox.store(error_reply(inbox.header(), error.for_others()))
        return
    context = Context(inbox.run_id, message.metadata.dst_node_id, {SITE: str(folder)}, RecordDict(), {})
    outbox.store(build_app(admit=lambda task: _admitted(folder, task))(message, context))


@contextmanager
def _admitted(folder: Path, task: Task) -> Iterator[None]:
    """What is done in the block was approved, and what comes of it is in the ledger."""
    decision = _gate(folder, task)
    carries_keys = isinstance(task.study.secure_aggregation, SecAgg) and isinstance(
        task.step, Advertise | Share | Unmask
    )
    with nullcontext() if carries_keys else accounted(folder, task, decision.max_epsilon):
        yield
        _gate(folder, task)  # the approval may have been taken back, or have expired, during the work


def _gate(folder: Path, task: Task) -> Decision:
    try:
        key = own_key(folder).public_key()
    except KeyFileError as error:  # it names folders of the hospital
        log.error("%s", error)
        raise NotApprovedError("key of the site", "must be usable", remedy="The site's log says more.") from None
    return accept(folder, key, task)


def main() -> None:
    """``python -m client.worker FOLDER NODE``: work whenever asked, until the node, of that process id, ends."""
    folder, node = Path(sys.argv[1]), int(sys.argv[2])
    keep_freed()
    end_with_parent(node)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # systemd tells both; the node decides when this process ends
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not pass for an answer
    log_to(folder / LOG)
    threads = read_settings(folder).threads
    if threads:
        import torch

        torch.set_num_threads(threads)
    for _ in sys.stdin:
        try:
            work(folder)
        except Exception:
            log.exception("The worker failed")
            raise
        print(DONE, file=answers, flush=True)


if __name__ == "__main__":
    main()
