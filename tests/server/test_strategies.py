"""Do Flower's strategies train, remember across a restart, and sample sites from the study's seed alone?"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from server.aggregation import from_flower, to_flower
from server.strategies.memory import Memory, read_memory, sampling_seed, write_memory
from server.strategies.registry import STRATEGIES, build_strategy
from server.study import run_study
from shared.checkpoints import load_arrays, save_arrays
from shared.errors import ConfigError
from shared.messages import ARRAYS, EXAMPLES, METRICS
from shared.weights import Weights
from simulation.grid import LocalGrid
from tests.server.federations import assert_same_bits, clinical_sites, clinical_study

# What each needs beyond its name.
SETTINGS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedavgm": {"arguments": {"server_momentum": 0.9, "server_learning_rate": 0.7}},
    "fedprox": {"proximal_mu": 0.1},
    "fedadagrad": {"arguments": {"eta": 0.02}},
    "fedadam": {"arguments": {"eta": 0.02}},
    "fedyogi": {"arguments": {"eta": 0.02}},
    "fedmedian": {},
    "fedtrimmedavg": {"arguments": {"beta": 0.2}},
    "krum": {"arguments": {"num_malicious_nodes": 1}},
    "multikrum": {"arguments": {"num_malicious_nodes": 1, "num_nodes_to_select": 3}},
    "bulyan": {"arguments": {"num_malicious_nodes": 1}},
}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven sites: what bulyan needs against one malicious one."""
    return clinical_sites(tmp_path_factory.mktemp("sites"), count=7, patients=40)


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bulyan collects garbage once a site, which takes long in a process that has loaded torch."""
    monkeypatch.setattr("gc.collect", lambda generation=2: 0)


def strategy_of(name: str) -> Strategy:
    return build_strategy(clinical_study({"strategy": {"name": name, **SETTINGS[name]}}))


def test_every_strategy_is_tried() -> None:
    assert SETTINGS.keys() == STRATEGIES.keys()


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_trains(tmp_path: Path, sites: list[Path], name: str) -> None:
    changes = {"finetune.rounds": 4, "finetune.select": "last", "strategy": {"name": name, **SETTINGS[name]}}
    study = clinical_study(changes)
    state = run_study(study, LocalGrid(sites), tmp_path)
    rounds = [record for record in state.records if record.stage == "finetune"]
    assert len(rounds) == 4
    for record in rounds:
        assert record.failed == {}
        assert len(record.sites) == 7
    losses = [record.tuning_loss for record in rounds if record.tuning_loss is not None]
    assert losses[-1] < losses[0]  # it learns
    for array in state.weights.values():
        assert array.dtype == np.float32
        assert np.isfinite(array).all()


def test_strategies_differ(tmp_path: Path, sites: list[Path]) -> None:
    models = {}
    for name in ("fedavg", "fedavgm", "fedprox", "fedmedian", "fedtrimmedavg", "krum"):
        changes = {"finetune.rounds": 1, "finetune.select": "last", "strategy": {"name": name, **SETTINGS[name]}}
        study = clinical_study(changes)
        weights = run_study(study, LocalGrid(sites), tmp_path / name).weights
        models[name] = b"".join(weights[key].tobytes() for key in sorted(weights))
    assert len(set(models.values())) == len(models)


# Memory


class Nodes(LocalGrid):
    """Nodes that are never asked."""

    def __init__(self, count: int) -> None:
        super().__init__([Path(str(number)) for number in range(count)])


SHAPES = {"z.weight": (3, 4), "a.bias": (4,), "middle": ()}  # not in alphabetical order, one without dimension


def weights_of(seed: Sequence[int]) -> Weights:
    generator = np.random.default_rng(seed)
    return {name: np.asarray(generator.normal(size=shape), dtype=np.float32) for name, shape in SHAPES.items()}


def replies(round: int, weights: Weights, messages: Iterable[Message]) -> list[Message]:
    """Updates in which site i moves the weights by its own random step."""
    answers = []
    for message in sorted(messages, key=lambda message: message.metadata.dst_node_id):
        node = message.metadata.dst_node_id
        step = weights_of([round, node])
        moved = {name: np.asarray(array + 0.1 * step[name]) for name, array in weights.items()}
        metrics = MetricRecord({EXAMPLES: 10 + node, "loss": 0.5})
        answers.append(Message(RecordDict({ARRAYS: to_flower(moved), METRICS: metrics}), reply_to=message))
    return answers


def one_round(strategy: Strategy, round: int, weights: Weights) -> Weights:
    messages = list(strategy.configure_train(round, to_flower(weights), ConfigRecord(), Nodes(7)))
    aggregated, _ = strategy.aggregate_train(round, replies(round, weights, messages))
    assert aggregated is not None
    return from_flower(aggregated, weights)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_continued_from_memory_equals_the_uninterrupted(tmp_path: Path, name: str) -> None:
    """Tells when an upgrade of Flower renames what a strategy remembers, or keeps it in another form."""
    uninterrupted, continued = strategy_of(name), strategy_of(name)
    left = right = weights_of([0])
    for number in range(1, 6):
        left = one_round(uninterrupted, number, left)
        right = one_round(continued, number, right)
        assert_same_bits(left, right)
        memory = through_a_file(tmp_path / f"{number}.safetensors", read_memory(continued))
        continued = strategy_of(name)
        write_memory(continued, memory)


def through_a_file(file: Path, memory: Memory) -> Memory:
    save_arrays(file, memory, {})
    return load_arrays(file)[0]


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("fedavgm", {"current_arrays", "momentum_vector"}),
        ("fedadagrad", {"current_arrays", "m_t", "v_t"}),
        ("fedadam", {"current_arrays", "m_t", "v_t"}),
        ("fedyogi", {"current_arrays", "m_t", "v_t"}),
    ],
)
def test_strategies_with_moments_remember_them(name: str, attributes: set[str]) -> None:
    strategy = strategy_of(name)
    weights = weights_of([0])
    for number in (1, 2):
        weights = one_round(strategy, number, weights)
    memory = read_memory(strategy)
    assert {key.split("/")[1] for key in memory} == attributes
    remembering, forgetting = (one_round(each, 3, weights)["z.weight"] for each in (strategy, strategy_of(name)))
    assert remembering.tobytes() != forgetting.tobytes()


def test_memory_is_a_copy_of_what_the_strategy_held() -> None:
    strategy = strategy_of("fedadam")
    weights = one_round(strategy, 1, weights_of([0]))
    memory = read_memory(strategy)
    before = {key: array.copy() for key, array in memory.items()}
    one_round(strategy, 2, weights)
    assert_same_bits(memory, before)


# Arguments


def test_unknown_argument_is_refused_with_those_that_are_taken() -> None:
    study = clinical_study({"strategy": {"name": "fedavgm", "arguments": {"momentum": 0.9}}})
    with pytest.raises(ConfigError, match=r"^strategy\.arguments\.momentum is not an argument of fedavgm\.") as caught:
        build_strategy(study)
    assert "server_momentum" in caught.value.remedy
    assert "server_learning_rate" in caught.value.remedy
    assert "fraction_train" not in caught.value.remedy  # a knob of its own sets it


@pytest.mark.parametrize("taken", ["fraction_train", "weighted_by_key"])
def test_argument_that_a_knob_sets_is_refused(taken: str) -> None:
    study = clinical_study({"strategy": {"arguments": {taken: 0.5}}})
    with pytest.raises(ConfigError, match=f"strategy.arguments.{taken}"):
        build_strategy(study)


def test_argument_that_the_strategy_itself_refuses_is_a_config_error() -> None:
    study = clinical_study({"strategy": {"name": "fedtrimmedavg", "arguments": {"beta": 0.6}}})
    with pytest.raises(ConfigError, match=r"strategy\.arguments must suit fedtrimmedavg"):
        build_strategy(study)


def test_unknown_strategy_is_refused_with_the_known() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.name must be one of fedavg, .*, got 'fedsgd'"):
        build_strategy(clinical_study({"strategy": {"name": "fedsgd"}}))


def test_fedprox_without_mu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.proximal_mu must be > 0 with fedprox, got 0\.0"):
        build_strategy(clinical_study({"strategy": {"name": "fedprox"}}))


# Sampling


def test_sampling_follows_the_study_seed_and_leaves_the_global_generator_alone(
    tmp_path: Path, sites: list[Path]
) -> None:
    def asked(folder: str, seed: int) -> list[list[str]]:
        changes = {"seed": seed, "finetune.rounds": 6, "finetune.select": "last", "strategy": {"fraction": 0.45}}
        state = run_study(clinical_study(changes), LocalGrid(sites), tmp_path / folder)
        return [record.sites for record in state.records if record.stage == "finetune"]

    random.seed(1)
    before = random.getstate()
    first = asked("a", seed=1)
    assert random.getstate() == before
    random.seed(2)
    assert asked("b", seed=1) == first
    assert asked("c", seed=2) != first
    assert {len(names) for names in first} == {3}  # 0.45 of 7
    assert len({tuple(names) for names in first}) > 1  # another draw each round


def test_minimum_of_sites_outweighs_the_fraction(tmp_path: Path, sites: list[Path]) -> None:
    changes = {"finetune.rounds": 1, "strategy": {"fraction": 0.1, "minimum_sites": 4}}
    state = run_study(clinical_study(changes), LocalGrid(sites), tmp_path)
    assert [len(record.sites) for record in state.records if record.stage == "finetune"] == [4]


def test_sampling_seed_restores_the_generator_after_an_error() -> None:
    random.seed(3)
    before = random.getstate()
    with pytest.raises(ZeroDivisionError), sampling_seed(5):
        random.sample([], 1 // 0)
    assert random.getstate() == before
