"""The benchmark compares like with like: its bare loop ends in the weights of the federated run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.state import State
from shared.config import Task
from simulation.benchmark import BenchmarkError, check_same, read_experiment, run_bare, run_federated
from simulation.cohorts.build import build_cohort
from simulation.cohorts.config import SyntheticCohort
from tests.factories import make_study

CASES: list[dict[str, Any]] = [
    {"pretrain.rounds": 2, "finetune.rounds": 2},
    {"pretrain.rounds": 0, "finetune.rounds": 3, "finetune.select": "last", "finetune.site_intercept": True},
]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Two hospitals that can both take part in every round."""
    config = SyntheticCohort(sites=2, patients=80, labelled=1.0, image_height=32, image_width=32)
    return build_cohort(config, Task(), 1, tmp_path_factory.mktemp("cohorts"), workers=1).sites


@pytest.mark.parametrize("changes", CASES, ids=["pretrained", "scratch"])
def test_bare_loop_is_the_federated_run(changes: Mapping[str, Any], sites: tuple[Path, ...], tmp_path: Path) -> None:
    study = make_study(changes)
    state, weights = run_federated(study, sites, tmp_path), run_bare(study, sites)
    check_same(state, weights)
    assert weights.keys() == state.weights.keys()
    assert not list(tmp_path.iterdir())


def test_other_weights_are_noticed() -> None:
    state = State(weights={"a": np.zeros(2)})
    check_same(state, {"a": np.zeros(2)})
    with pytest.raises(BenchmarkError, match="weights a must be equal"):
        check_same(state, {"a": np.array([0.0, 1e-12])})


def test_setting_is_the_federated_arm_alone() -> None:
    experiment = read_experiment(["experiment=demo", "pretrain.rounds=1"])
    assert experiment.comparison.arms == ("federated",)
    assert (experiment.images.height, experiment.pretrain.rounds) == (64, 1)
