"""When are two releases the same one? When the same task meets the same data: then they agree bit by bit.

A release that is repeated tells nothing new and costs nothing more. That holds only if nothing besides it was released
under the same random numbers: two results that differ in one input and share their noise give away the difference.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from client.site import read_settings
from shared.knobs import to_json
from shared.messages import Task

_READ = ("dataset.yaml", "events.parquet", "imaging/index.parquet", "subject_splits.parquet")


def release_identity(folder: Path, task: Task) -> str:
    """SHA-256 of all that a result depends on: the whole task, the code, the site's tables and its device."""
    found = hashlib.sha256(_data_digest(folder, task.study.task.name).encode())
    device = read_settings(folder).device  # which rounds in its own way
    statistics = "" if task.statistics is None else to_json(task.statistics)
    for part in (to_json(task.study), task.stage, task.round, task.rounds, task.split, statistics, task.code, device):
        found.update(f"{part}\0".encode())
    for name, array in sorted(task.weights.items()):
        found.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)  # where it lies, without a copy
    return found.hexdigest()


@lru_cache(maxsize=64)
def _data_digest(folder: Path, task: str) -> str:
    """Kept for the life of the process, as the store is: while a site serves, no import changes its tables."""
    found = hashlib.sha256()
    for name in (*_READ, f"labels/{task}.parquet"):
        if (folder / name).exists():
            with (folder / name).open("rb") as stream:
                found.update(f"{name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()
