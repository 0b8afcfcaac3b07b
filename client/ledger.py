"""How much of its patients' privacy has this site spent? One ledger for all studies, which no restart forgets.

It belongs to the site folder: whatever was released counts for all patients of the site, those too who came later: who
was in a release cannot be taken out of it any more. So the sum is never below what any one patient has spent.
"""

from __future__ import annotations

import hmac
import math
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from client.database import transaction
from client.identity import release_identity
from client.site import PRIVATE, SiteSettings, read_settings
from shared.accounting import Release, epsilon
from shared.config import EVALUATE, FINETUNE, SURVEY, Study
from shared.errors import FedretinaError
from shared.knobs import digest
from shared.messages import Task
from shared.privacy import PrivacyPlan

LEDGER = "state/privacy.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS releases (
    identity TEXT PRIMARY KEY, time TEXT NOT NULL, study TEXT NOT NULL, study_digest TEXT NOT NULL,
    stage TEXT NOT NULL, round INTEGER NOT NULL, patients INTEGER NOT NULL, patients_digest TEXT NOT NULL,
    noise_multiplier REAL, sampling_rate REAL, steps INTEGER, delta REAL, epsilon REAL NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS no_change BEFORE UPDATE ON releases BEGIN SELECT RAISE(ABORT, 'rows stay'); END;
CREATE TRIGGER IF NOT EXISTS no_removal BEFORE DELETE ON releases BEGIN SELECT RAISE(ABORT, 'rows stay'); END;
CREATE TABLE IF NOT EXISTS own (key BLOB NOT NULL) STRICT;
"""


class BudgetError(FedretinaError):
    """A release that the site does not make, as it would cost its patients more than the site lets it."""


@dataclass(frozen=True)
class Entry:
    """One release.

    Attributes:
        identity: of the release: the same task on the same data is the same release, and is counted once.
        patients, patients_digest: of the site at that time; the digest is keyed: nobody can try out identifiers.
        noise_multiplier, sampling_rate, steps, delta: of the release, and of the study's plan; None without privacy.
        epsilon: of all private releases of this site so far, at the δ of site.yaml.
    """

    identity: str
    time: str
    study: str
    study_digest: str
    stage: str
    round: int
    patients: int
    patients_digest: str
    noise_multiplier: float | None
    sampling_rate: float | None
    steps: int | None
    delta: float | None
    epsilon: float

    @property
    def release(self) -> Release | None:
        """What was released; None where it was not private."""
        if self.noise_multiplier is None or self.sampling_rate is None or self.steps is None:
            return None
        return Release(self.noise_multiplier, self.sampling_rate, self.steps)


@contextmanager
def accounted(folder: Path, task: Task, limit: float) -> Iterator[None]:
    """The block makes what the task asks for; it is in the ledger, on the disk, before the block begins.

    Work that fails has its cost: an error tells something too. To repeat it costs nothing more.

    Args:
        limit: largest ε that the site lets this study have, at the study's own δ.

    Raises:
        BudgetError: it would pass a limit of the site.
        SiteError: the ledger, or the site's data, cannot be used.
    """
    places = ", ".join("?" * len(fields(Entry)))
    rows = [_entry(folder, one) for one in _released_by(task)]
    with _opened(folder) as connection:
        for row in rows:
            admitted = _admit(folder, connection, row, limit)
            connection.execute(f"INSERT OR IGNORE INTO releases VALUES ({places})", astuple(admitted))
    yield


def _released_by(task: Task) -> list[Task]:
    """The task; and the survey where its noised count is used, whether or not the coordinator asked for it before."""
    uses = task.study.finetune.site_intercept and task.stage in (FINETUNE, EVALUATE)
    if not uses or PrivacyPlan.of(task.study).release_of(SURVEY) is None:
        return [task]
    return [Task.to_survey(task.study), task]


def entries(folder: Path) -> list[Entry]:
    """Every release of the site, the first one first; none where there is no ledger."""
    if not (folder / LEDGER).exists():
        return []
    with _opened(folder) as connection:
        return _entries(connection)


def spent(entries: Sequence[Entry], delta: float) -> float:
    """The ε of releases together at a δ; what was not private has none and is left out."""
    return epsilon([entry.release for entry in entries if entry.release is not None], delta)


def forecast(folder: Path, study: Study) -> float:
    """What the site's ledger would state if it did the whole study from now on."""
    before = [entry.release for entry in entries(folder) if entry.release is not None]
    return epsilon([*before, *PrivacyPlan.of(study).releases()], read_settings(folder).delta_cap)


def _opened(folder: Path) -> AbstractContextManager[sqlite3.Connection]:
    return transaction(folder / LEDGER, _SCHEMA)


def _entries(connection: sqlite3.Connection) -> list[Entry]:
    return [Entry(*row) for row in connection.execute("SELECT * FROM releases ORDER BY rowid")]


def _entry(folder: Path, task: Task) -> Entry:
    """The row of a task, but for the time and the sum, which are of the moment at which it is written."""
    from client.store import open_store  # pandas and torch, which a look into the ledger needs not

    plan, subjects = PrivacyPlan.of(task.study), open_store(folder, task.study).subjects
    release = plan.release_of(task.stage)
    cost: tuple[float, float, int, float] | tuple[None, ...] = (None,) * 4
    if release is not None:
        cost = (release.noise_multiplier, release.sampling_rate, release.steps, plan.delta)
    with _opened(folder) as connection:
        key = _own_key(connection)
    return Entry(
        identity=release_identity(folder, task),
        time="",
        study=task.study.name,
        study_digest=digest(task.study),
        stage=task.stage,
        round=task.round,
        patients=len(subjects),
        patients_digest=hmac.digest(key, subjects.astype("<i8").tobytes(), "sha256").hex(),
        noise_multiplier=cost[0],
        sampling_rate=cost[1],
        steps=cost[2],
        delta=cost[3],
        epsilon=0.0,
    )


def _own_key(connection: sqlite3.Connection) -> bytes:
    row = connection.execute("SELECT key FROM own").fetchone()
    if row is None:
        row = (secrets.token_bytes(32),)
        connection.execute("INSERT INTO own VALUES (?)", row)
    return bytes(row[0])


def _admit(folder: Path, connection: sqlite3.Connection, entry: Entry, limit: float) -> Entry:
    """The row to write: as it is there, or with the sum that it leads to; raises ``BudgetError``."""
    if entry.release is None:
        _check_open(entry, read_settings(folder))
    known = connection.execute("SELECT * FROM releases WHERE identity = ?", (entry.identity,)).fetchone()
    if known is not None:
        return Entry(*known)
    after, settings = [*_entries(connection), entry], read_settings(folder)
    if entry.release is not None:
        _check_delta(entry, settings)
        _check_study(after, entry, limit)
    total = spent(after, settings.delta_cap)
    if entry.release is not None and total > settings.epsilon_cap:
        left = f"must keep ε <= {settings.epsilon_cap:g} (site.yaml: epsilon_cap)"
        remedy = "The site has no privacy left for this; only the site can change that."
        raise BudgetError(f"{entry.stage} of study {entry.study!r}", left, value=round(total, 3), remedy=remedy)
    return replace(entry, time=datetime.now(UTC).isoformat(timespec="seconds"), epsilon=total)


def _check_open(entry: Entry, settings: SiteSettings) -> None:
    if settings.releases == PRIVATE:
        remedy = "The study lets it leave without noise, which this site does not."
        name = f"{entry.stage} of study {entry.study!r}"
        raise BudgetError(name, "must be private (site.yaml: releases)", remedy=remedy)


def _check_delta(entry: Entry, settings: SiteSettings) -> None:
    """A δ of one in so many patients lets one of them be published whole."""
    assert entry.delta is not None
    if entry.delta > settings.delta_cap:
        rule = f"must be <= {settings.delta_cap:g} (site.yaml: delta_cap)"
        raise BudgetError("privacy.delta", rule, value=entry.delta)
    if settings.delta_cap * entry.patients >= 1.0:
        rule, remedy = "must be < 1 / patients of the site", "The site must set a smaller one in site.yaml."
        raise BudgetError("site.yaml: delta_cap", rule, value=settings.delta_cap, remedy=remedy)


def _check_study(after: Sequence[Entry], entry: Entry, limit: float) -> None:
    """What a study gets is bounded by what was approved, not by how often its coordinator asks."""
    if math.isinf(limit):
        return
    assert entry.delta is not None
    own = spent([other for other in after if other.study_digest == entry.study_digest], entry.delta)
    if own > limit:
        rule, remedy = f"must be <= {limit:.6g}, as approved by the site", "At the site: approve --max-epsilon."
        raise BudgetError(f"ε of study {entry.study!r}", rule, value=round(own, 3), remedy=remedy)
