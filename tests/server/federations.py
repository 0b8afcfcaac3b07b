"""How does a test get a small federation? Clinical-only and image sites on disk, grids that fail, runs that are cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from flwr.app import Message

from server.state import ROUNDS, RoundRecord
from shared.checkpoints import load_arrays
from shared.config import Study
from shared.messages import error_reply
from shared.weights import Weights
from simulation.grid import LocalGrid
from tests.factories import DIABETES, SYSTOLIC, VISIT, EventRow, empty_site, make_events, make_labels, make_study
from tests.factories import small_site as image_tables

CLINICAL_ONLY: dict[str, Any] = {
    "modalities": ["clinical"],
    "pretrain": {"rounds": 0},
    "finetune": {"rounds": 3, "batch_size": 8, "lr": 0.02},
    "model.clinical.dropout": 0.2,
    "strategy": {"round_timeout_s": 20.0},  # a test that waits for an answer fails soon
}


def clinical_study(changes: Mapping[str, Any] | None = None) -> Study:
    """A study on records alone, quick to train."""
    return make_study(deepcopy({**CLINICAL_ONLY, **(changes or {})}))


def clinical_site(folder: Path, name: str, patients: int = 40, first: int = 1, seed: int = 0) -> Path:
    """A site without images, whose outcome follows age, pressure and diabetes by chance."""
    random = np.random.default_rng([seed, first])
    rows: list[EventRow] = []
    labels: list[tuple[int, object, bool]] = []
    for subject in range(first, first + patients):
        years, pressure, diabetic = random.uniform(40, 90), random.normal(140, 20), random.random() < 0.3
        rows.append((subject, VISIT - pd.Timedelta(days=365.25 * years), "MEDS_BIRTH", None))
        if random.random() < 0.9:
            rows.append((subject, VISIT - pd.Timedelta(days=20), SYSTOLIC, pressure))
        if diabetic:
            rows.append((subject, VISIT - pd.Timedelta(days=300), DIABETES, None))
        risk = 0.05 * (years - 65) + 0.03 * (pressure - 140) + diabetic
        labels.append((subject, VISIT, bool(random.logistic() < risk)))
    tables = empty_site(name)
    tables.events, tables.labels["detection"] = make_events(rows), make_labels(labels)
    return tables.write(folder / name).path


def clinical_sites(folder: Path, count: int = 3, patients: int = 40) -> list[Path]:
    """Sites of different sizes, named in the order of their nodes."""
    return [clinical_site(folder, f"site-{i:02d}", patients + 15 * i, first=1 + 1000 * i) for i in range(count)]


def image_sites(folder: Path, count: int = 2, patients: int = 24) -> list[Path]:
    """Sites with scans of both modalities and records."""
    names = [f"site-{i:02d}" for i in range(count)]
    return [image_tables(n, patients, first=1 + 60 * i).write(folder / n).path for i, n in enumerate(names)]


class FaultyGrid(LocalGrid):
    """A grid in which something happens to replies.

    Args:
        change: is given the place of the site among the sites, the number of its reply (1 is its survey), and the
            reply; returns what arrives instead.
    """

    def __init__(self, sites: Sequence[Path], change: Callable[[int, int, Message], list[Message]]) -> None:
        super().__init__(sites)
        self._change, self._turns = change, [0] * len(sites)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        if not replies:
            return []
        site = replies[0].metadata.src_node_id - 2  # the first site's node is 2
        self._turns[site] += 1
        return self._change(site, self._turns[site], replies[0])


def refused(reply: Message, reason: str) -> Message:
    """An error in the place of a reply, with Flower's way to name the message that it answers."""
    error = error_reply(reply, reason)
    error.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return error


class CutError(BaseException):
    """The process is gone: nothing may catch this."""


def cut_after(records: int) -> Callable[[RoundRecord], None]:
    """A watch in which the process ends after so many phases."""
    seen: list[RoundRecord] = []

    def watch(record: RoundRecord) -> None:
        seen.append(record)
        if len(seen) == records:
            raise CutError

    return watch


def outcome(folder: Path) -> tuple[dict[str, Weights], list[dict[str, Any]]]:
    """What a run left behind that must not depend on interruptions: the arrays of its files, its rounds."""
    names = ("model.safetensors", "pretrained.safetensors")
    arrays = {name: load_arrays(folder / name)[0] for name in names if (folder / name).exists()}
    return arrays, rounds_of(folder)


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / ROUNDS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "site_seconds")} for line in lines]


def assert_same_bits(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Equal names, dtypes and bytes, at any depth of mappings."""
    assert a.keys() == b.keys()
    for name in a:
        if isinstance(a[name], Mapping):
            assert_same_bits(a[name], b[name])
        else:
            assert a[name].dtype == b[name].dtype, name
            assert a[name].shape == b[name].shape, name
            assert a[name].tobytes() == b[name].tobytes(), name


def assert_same_outcome(a: Path, b: Path) -> None:
    """Two runs ended alike, bit for bit."""
    arrays_a, rounds_a = outcome(a)
    arrays_b, rounds_b = outcome(b)
    assert rounds_a == rounds_b
    assert_same_bits(arrays_a, arrays_b)
