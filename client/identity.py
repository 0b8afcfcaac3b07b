"""When are two releases the same one? When the same task meets the same data: then they agree bit by bit.

A release that is repeated tells nothing new and costs nothing more. That holds only if nothing besides it was released
under the same random numbers: two results that differ in one input and share their noise give away the difference.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from shared.knobs import to_json
from shared.messages import Task
from shared.weights import hash_weights


def release_identity(folder: Path, task: Task) -> str:
    """SHA-256 of all that a result depends on: the whole task, the code, the site's data and its device."""
    from client.store import open_store  # pandas and torch, which a look into the ledgers needs not

    store = open_store(folder, task.study)
    found = hashlib.sha256(store.data_digest.encode())
    machine = f"{store.settings.device} {store.settings.threads}"  # which round in their own way
    statistics = "" if task.statistics is None else to_json(task.statistics)
    for part in (to_json(task.study), task.stage, task.round, task.rounds, task.split, statistics, task.code, machine):
        found.update(f"{part}\0".encode())
    hash_weights(found, task.weights)
    return found.hexdigest()
