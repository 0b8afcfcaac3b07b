"""What left this site? Nothing that is not on the list of what may, and each of it by a row that cannot be taken back.

The node asks here before it sends. A row holds the hash of the one before; the last hash and the number of rows are
signed by the site's key, so that a row that was changed, removed or added is found, at the end of the ledger too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict

from client.approvals import APPROVED, NotApprovedError, read_decision
from client.database import transaction
from client.ledger import entries
from client.parcels import Parcel
from shared.config import FINETUNE, PRETRAIN
from shared.errors import MessageError, SiteError
from shared.keys import PrivateKey, PublicKey, fingerprint, is_signed, sign
from shared.knobs import digest
from shared.messages import (
    ARRAYS,
    AWAITS_APPROVAL,
    FAILED_AT_SITE,
    Form,
    Task,
    check_reply,
    decode_task,
    error_reply,
    masked_forms,
    piece_forms,
)
from shared.secure_aggregation.summands import lengths
from shared.statistics import numeric_names

EGRESS = "state/egress.sqlite"
BEGUN, ERROR, WITHHELD = "begun", "error", "withheld"  # beside the kinds of replies
WITHHELD_REASON = "the reply was withheld by the site: it is not of a form that may leave; the site's log says more"
LONGEST_REASON = 2000
LARGEST_RECORDS_BYTES = 2**20  # of a reply besides its tensors
FIRST = "0" * 64  # in the place of a hash before the first row
_SIGNED = b"fedretina egress 1\n"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS departures (number INTEGER PRIMARY KEY, message TEXT NOT NULL, content TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS by_message ON departures (message);
CREATE TABLE IF NOT EXISTS head (key TEXT PRIMARY KEY, signature BLOB NOT NULL) STRICT;
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Departure:
    """One message that left, or was about to when the site was interrupted; sent again it is the same.

    Attributes:
        time: at which it was let go, ISO 8601, UTC.
        kind: survey, update, evaluation, error, or withheld: an error in the place of what was not let go. The first
            row is none of these: begun.
        run: Flower's number of the run.
        study, study_digest, stage, round: of the task that it answers; empty where that could not be read.
        bytes: of all its parts.
        sha256: of its first part, which names the others by their SHA-256: of all that it says.
        approval: SHA-256 of the site's decision on the study; empty where there is none.
        epsilon: of the site's privacy ledger at that time.
        number: 1 for the first row.
        previous: SHA-256 of the row before.
    """

    time: str
    kind: str
    run: int = 0
    study: str = ""
    study_digest: str = ""
    stage: str = ""
    round: int = 0
    bytes: int = 0
    sha256: str = ""
    approval: str = ""
    epsilon: float = 0.0
    number: int = 0
    previous: str = ""

    def content(self) -> str:
        """The row as it is stored and hashed."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def of(content: str) -> Departure:
        """The inverse of ``content``; raises ``ValueError`` or ``TypeError`` for what is none."""
        return Departure(**json.loads(content))


def hash_of(content: str) -> str:
    """SHA-256 of a row as it is stored."""
    return hashlib.sha256(content.encode()).hexdigest()


def open_egress(folder: Path) -> AbstractContextManager[sqlite3.Connection]:
    """A transaction on the egress ledger."""
    return transaction(folder / EGRESS, _SCHEMA)


def signed_head(number: int, last: str) -> bytes:
    """What the site's key signs: how many rows there are, and the hash of the last one."""
    return _SIGNED + f"{number} {last}".encode()


def vouch(connection: sqlite3.Connection, key: PrivateKey, number: int, last: str) -> None:
    """Sign the ledger as it is now."""
    signature = sign(key, signed_head(number, last))
    connection.execute("INSERT OR REPLACE INTO head VALUES (?, ?)", (fingerprint(key.public_key()), signature))


def is_vouched(connection: sqlite3.Connection, key: PublicKey, number: int, last: str) -> bool:
    """Did the holder of the key sign the ledger as it is now?"""
    signatures = connection.execute("SELECT signature FROM head WHERE key = ?", (fingerprint(key),))
    return any(is_signed(key, signed_head(number, last), bytes(found)) for (found,) in signatures)


def last_row(connection: sqlite3.Connection) -> tuple[int, str]:
    """How many rows there are, and the hash of the last one."""
    last = connection.execute("SELECT number, content FROM departures ORDER BY number DESC LIMIT 1").fetchone()
    return (0, FIRST) if last is None else (last[0], hash_of(last[1]))


def hand_over(folder: Path, old: PrivateKey, new: PrivateKey) -> None:
    """Let a site's new key vouch for the ledger too, if the old one does: a change of keys mends no tampering."""
    if (folder / EGRESS).exists():
        with open_egress(folder) as connection:
            number, last = last_row(connection)
            if is_vouched(connection, old.public_key(), number, last):
                vouch(connection, new, number, last)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Egress:
    """The way out of a site.

    Args:
        key: of the site, which signs.
        site: its name, which its messages must bear.

    Raises:
        SiteError: the ledger is not as the site left it, or cannot be used.
    """

    def __init__(self, folder: Path, key: PrivateKey, site: str) -> None:
        self._folder, self._key, self._site = folder, key, site
        self._forms: dict[tuple[str, str], dict[str, Form]] = {}  # of the tensors, by study and stage
        with open_egress(folder) as connection:
            if last_row(connection) == (0, FIRST):  # begun before any work: one that is younger took another's place
                self._append(connection, Departure(time=_now(), kind=BEGUN))
            self._check_whole(connection)

    def let_go(self, inbox: Parcel, outbox: Parcel) -> None:
        """Record the message in the outbox as one that leaves; one that may not leave is replaced by an error first.

        Raises:
            SiteError: the ledger is not as the site left it, or cannot be written; then nothing may leave.
            MessageError: a message that may not leave, and the task is gone that could be answered by an error.
            CheckpointError: the message is damaged.
        """
        if self._is_known(outbox):
            return
        task = None
        try:
            if not inbox.is_there:
                raise MessageError("reply", "must answer a task that is there")
            task = self._task(inbox)
            kind = self._kind(inbox, outbox, task)
        except MessageError as error:
            log.error("withheld: %s", error)
            if not inbox.is_there:
                raise
            outbox.store(error_reply(inbox.header(), WITHHELD_REASON))
            kind = WITHHELD
        self._record(outbox, task, kind)

    def _is_known(self, outbox: Parcel) -> bool:
        with open_egress(self._folder) as connection:
            found = connection.execute("SELECT 1 FROM departures WHERE message = ?", (outbox.message_id,))
            return found.fetchone() is not None

    def _task(self, inbox: Parcel) -> Task | None:
        """What was asked, without its weights; None where that was no task, which only an error answers."""
        try:
            content = inbox.skim(None).content
            return decode_task(RecordDict({**content, ARRAYS: ArrayRecord()}))
        except (MessageError, ValueError):  # ValueError: Flower's, for an error in the place of a task
            return None

    def _kind(self, inbox: Parcel, outbox: Parcel, task: Task | None) -> str:
        """The kind of a message that may leave; raises ``MessageError`` for any other."""
        forms: dict[str, Form] = {}
        pieces = 0

        def look(piece: Array) -> None:
            nonlocal pieces
            found, pieces = piece_forms(piece), pieces + 1
            if not forms.keys().isdisjoint(found):
                raise MessageError("weights", "must be named once")
            forms.update(found)

        header, message = outbox.header(), outbox.skim(look)
        asked, answered = inbox.header().metadata, header.metadata
        if (answered.run_id, answered.reply_to_message_id, answered.message_type, answered.group_id) != (
            asked.run_id,
            inbox.message_id,
            asked.message_type,
            asked.group_id,
        ):
            raise MessageError("reply", "must be to its task")
        if message.has_error() or header.has_error():
            return _check_error(header, message)
        if task is None:
            raise MessageError("reply", "must be an error where there was no task")
        if self._was_taken_back(task):
            raise MessageError("reply", "must be to a study whose approval was not taken back while it waited")
        if len(message.content.array_records.get(ARRAYS, ())) != pieces:
            raise MessageError("weights", "must be pieces that differ")
        if outbox.size_bytes > LARGEST_RECORDS_BYTES + _size_bytes(forms):
            raise MessageError("reply", f"must be of at most {LARGEST_RECORDS_BYTES} bytes besides its tensors")
        kind = check_reply(message.content, task, self._site)
        if forms != self._allowed(inbox, task, kind):
            raise MessageError("weights", "must be the model's tensors")
        return kind

    def _allowed(self, inbox: Parcel, task: Task, kind: str) -> dict[str, Form]:
        """The forms of the tensors of a message of some kind."""
        if kind == "update":
            return self._expected(inbox, task)
        if kind == "masked":
            model = self._expected(inbox, task) if task.stage in (PRETRAIN, FINETUNE) else {}
            return masked_forms(sum(prod(shape) for _, shape in model.values()), sum(_lengths(task)))
        return {}

    def _expected(self, inbox: Parcel, task: Task) -> dict[str, Form]:
        """The forms of the weights that came, which are the model's, or else the task could not be done."""
        place = (digest(task.study), task.stage)
        if place not in self._forms:
            forms: dict[str, Form] = {}
            inbox.skim(lambda piece: forms.update(piece_forms(piece)))
            self._forms[place] = forms
        return self._forms[place]

    def _record(self, outbox: Parcel, task: Task | None, kind: str) -> None:
        known = entries(self._folder)
        row = Departure(
            time=_now(),
            kind=kind,
            run=outbox.run_id,
            bytes=outbox.size_bytes,
            sha256=outbox.message_id,
            epsilon=known[-1].epsilon if known else 0.0,
        )
        if task is not None:
            row = replace(
                row,
                study=task.study.name,
                study_digest=digest(task.study),
                stage=task.stage,
                round=task.round,
                approval=self._approval(task),
            )
        with open_egress(self._folder) as connection:
            self._check_whole(connection)
            self._append(connection, row)

    def _append(self, connection: sqlite3.Connection, row: Departure) -> None:
        number, previous = last_row(connection)
        row = replace(row, number=number + 1, previous=previous)
        connection.execute("INSERT INTO departures VALUES (?, ?, ?)", (row.number, row.sha256, row.content()))
        connection.execute("DELETE FROM head")  # what an older state of the ledger could be passed off with
        vouch(connection, self._key, row.number, hash_of(row.content()))

    def _check_whole(self, connection: sqlite3.Connection) -> None:
        """A signature more would hide that the end was changed since the last one."""
        if not is_vouched(connection, self._key.public_key(), *last_row(connection)):
            rule, remedy = "must end as this site signed it", "fedretina site audit says what is wrong; nothing leaves."
            raise SiteError(EGRESS, rule, remedy=remedy)

    def _was_taken_back(self, task: Task) -> bool:
        try:
            decision = read_decision(self._folder, self._key.public_key(), digest(task.study))
        except NotApprovedError:
            return True
        return decision is not None and decision.verdict != APPROVED

    def _approval(self, task: Task) -> str:
        try:
            decision = read_decision(self._folder, self._key.public_key(), digest(task.study))
        except NotApprovedError:
            return ""
        return "" if decision is None else hashlib.sha256(decision.content()).hexdigest()


def _check_error(header: Message, message: Message) -> str:
    if not (header.has_error() and message.has_error()) or header.error != message.error:
        raise MessageError("error", "must be one error")
    error: Error = message.error
    reason = error.reason or ""
    if error.code not in (FAILED_AT_SITE, AWAITS_APPROVAL) or len(reason) > LONGEST_REASON or not reason.isprintable():
        raise MessageError("error", f"must be ours, in at most {LONGEST_REASON} characters")
    return WITHHELD if reason == WITHHELD_REASON else ERROR


def _lengths(task: Task) -> tuple[int, int]:
    """Counts and reals in the sum that a task is a step of."""
    return lengths(task.stage, len(numeric_names(task.study)))


def _size_bytes(forms: dict[str, Form]) -> int:
    """Of tensors, with room for their names."""
    return sum(np.dtype(dtype).itemsize * prod(shape) + 200 + len(name) for name, (dtype, shape) in forms.items())
