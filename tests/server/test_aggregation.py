"""Does aggregation from disk, in parts, give what the strategy makes of whole updates, bit for bit?"""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from hypothesis import given, settings
from hypothesis import strategies as st

from server import aggregation
from server.aggregation import KeptUpdate, aggregate, drop_updates, from_flower, keep_update, to_flower
from server.strategies.registry import build_strategy
from shared.messages import ARRAYS, EXAMPLES, METRICS, Update
from shared.metrics import empty_scores
from shared.weights import Weights
from simulation.grid import LocalGrid
from tests.server.federations import assert_same_bits, clinical_study

SHAPES = {"a": (3, 4), "scalar": (), "empty": (0, 2), "b": (7,), "c": (2, 2, 2)}


def weights(seed: int) -> Weights:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def reply_of(node: int) -> Message:
    """An answer of a node, without content."""
    LocalGrid([])  # gives Flower's messages a sender
    message = Message(RecordDict(), dst_node_id=node, message_type="train")
    reply = Message(RecordDict(), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = node
    return reply


def kept(folder: Path, count: int) -> list[KeptUpdate]:
    updates = [
        Update(f"site-{i}", "finetune", 1, weights(i), 10 + 3 * i, 0.1 * i, empty_scores(), 0.0) for i in range(count)
    ]
    return [keep_update(folder, u, reply_of(i + 2), 1.0) for i, u in enumerate(updates)]


def strategy(name: str) -> Strategy:
    return build_strategy(clinical_study({"strategy.name": name}))


@pytest.mark.parametrize("name", ["fedavg", "fedmedian", "fedtrimmedavg", "krum"])
@pytest.mark.parametrize("part_bytes", [1, 200, 2**20])
@pytest.mark.parametrize("large", [30, 2**20])  # bytes: "a" and "c" are larger than the first
def test_in_parts_equals_the_strategy_on_whole_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, part_bytes: int, large: int
) -> None:
    monkeypatch.setattr(aggregation, "_PART_BYTES", part_bytes)
    monkeypatch.setattr(aggregation, "_LARGE", large)
    whole = []
    for i in range(5):
        reply = reply_of(i + 2)
        metrics = MetricRecord({EXAMPLES: 10 + 3 * i, "loss": 0.1 * i})
        reply.content = RecordDict({ARRAYS: to_flower(weights(i)), METRICS: metrics})
        whole.append(reply)
    expected, _ = strategy(name).aggregate_train(1, whole)
    assert expected is not None
    found = aggregate(strategy(name), 1, kept(tmp_path, 5), weights(0))
    assert found is not None
    assert list(found) == list(SHAPES)
    assert_same_bits(found, from_flower(expected, weights(0)))


def test_parts_are_bounded_and_whole_for_strategies_that_compare_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregation, "_PART_BYTES", 1)
    seen: list[list[str]] = []

    def counting(name: str) -> Strategy:
        made = strategy(name)
        original = made.aggregate_train

        def aggregate_train(number: int, replies: list[Message]) -> object:
            seen.append(list(replies[0].content.array_records[ARRAYS]))
            return original(number, replies)

        monkeypatch.setattr(made, "aggregate_train", aggregate_train)
        return made

    aggregate(counting("fedavg"), 1, kept(tmp_path, 3), weights(0))
    assert seen == [[name] for name in SHAPES if name != "empty"]  # which all have alike
    seen.clear()
    aggregate(counting("krum"), 1, kept(tmp_path, 3), weights(0))
    assert seen == [list(SHAPES)]
    seen.clear()
    monkeypatch.setattr(aggregation, "_PART_BYTES", 2**20)
    monkeypatch.setattr(aggregation, "_LARGE", 30)
    aggregate(counting("fedavg"), 1, kept(tmp_path, 3), weights(0))
    assert seen == [["a", "scalar", "c"]]  # "b" is put together with the scalar; large ones are not copied


@given(st.data())
@settings(max_examples=30)
def test_what_is_kept_is_read_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(list(SHAPES)), unique=True))
    (update,) = kept(tmp_path_factory.mktemp("updates"), 1)
    assert not update.reply.content  # the weights are on disk alone
    assert_same_bits(update.read(names, weights(0)), {n: a for n, a in weights(0).items() if n in names})


def test_files_of_a_round_are_dropped(tmp_path: Path) -> None:
    kept(tmp_path / "updates", 2)
    drop_updates(tmp_path / "updates")
    drop_updates(tmp_path / "updates")  # none there is no fault
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fedavg", "fedmedian", "fedtrimmedavg"])
def test_what_all_have_alike_stays_to_the_bit(tmp_path: Path, name: str) -> None:
    frozen = weights(9)["a"]
    updates = [
        Update(f"site-{i}", "finetune", 1, weights(i) | {"a": frozen}, 10 + 3 * i, 0.1, empty_scores(), 0.0)
        for i in range(5)
    ]
    kept_updates = [keep_update(tmp_path, u, reply_of(i + 2), 1.0) for i, u in enumerate(updates)]
    merged = aggregate(strategy(name), 1, kept_updates, weights(0))
    assert merged is not None
    assert np.array_equal(merged["a"], frozen)
    assert not any(np.array_equal(merged["b"], update.weights["b"]) for update in updates[:2])


@pytest.mark.parametrize(
    ("tensors", "parts"),
    [(20, 3.5), (80, 3.5), (2000, 4.5)],  # of 4 MB, 1 MB, and 40 KB: only small ones are put together, by another copy
)
def test_updates_of_a_large_model_are_never_in_memory_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: int, parts: float
) -> None:
    part, model = 12 * 2**20, 80 * 2**20
    monkeypatch.setattr(aggregation, "_PART_BYTES", part)
    like: Weights = {str(i): np.zeros(model // tensors // 4, dtype=np.float32) for i in range(tensors)}
    updates = []
    for i in range(3):
        changed: Weights = {name: np.full_like(array, i) for name, array in like.items()}
        update = Update(f"site-{i}", "finetune", 1, changed, 10, 0.1, empty_scores(), 0.0)
        updates.append(keep_update(tmp_path, update, reply_of(i + 2), 1.0))
    del changed, update
    whole = strategy("fedavg")
    tracemalloc.start()
    try:
        found = aggregate(whole, 1, updates, like)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    assert found["0"][0] == 1.0
    assert peak < model + parts * part
