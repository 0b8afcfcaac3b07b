"""Is the one loop the plain loop, with nothing random but its seed?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, nn

from client.gradients import BatchGradients, draw_batches
from client.optimizers import build_optimizer, rate_factor
from client.store import Rows
from client.training import Trained, train
from shared.config import FINETUNE, Stage, Study
from shared.inputs import Cases
from shared.objectives.objective import Objective
from shared.objectives.registry import build_objective
from shared.statistics import Statistics
from shared.weights import read_weights
from tests.factories import make_cases, make_study

CPU = torch.device("cpu")
ROWS = np.arange(12, dtype=np.int64)
ALL = make_cases(12)
AUGMENTATION = {"flip": 0.5, "noise": 0.2, "crop_area": 0.2}


def take(rows: Rows) -> Cases:
    at = torch.from_numpy(rows)
    assert ALL.clinical is not None
    assert ALL.recorded is not None
    images, shown = ({name: value[at] for name, value in part.items()} for part in (ALL.images, ALL.shown))
    return Cases(images, shown, ALL.clinical[at], ALL.recorded[at], ALL.labels[at])


def study_of(**changes: Any) -> Study:
    settings = {"epochs": 2.0, "augmentation": AUGMENTATION, "rounds": 4, **changes}
    return make_study({f"finetune.{name}": value for name, value in settings.items()} | {"model.dropout": 0.3})


def fresh(study: Study) -> Objective:
    return build_objective(study, FINETUNE, Statistics.neutral(study))


def run(study: Study, seed: int = 5, round: int = 2, objective: Objective | None = None) -> tuple[Any, Trained]:
    objective = objective or fresh(study)
    optimizer = build_optimizer(objective, study, study.finetune)
    trained = train(
        objective, ROWS, BatchGradients(take, study.finetune, CPU), study.finetune, optimizer, seed, round, CPU
    )
    return read_weights(objective), trained


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


# Batches

row_counts = st.integers(1, 60)
batch_stages = st.builds(Stage, batch_size=st.integers(2, 20), epochs=st.sampled_from([0.3, 0.5, 1.0, 1.5, 3.0]))


def batches_of(count: int, stage: Stage, seed: int = 0) -> list[Rows]:
    rows = np.arange(100, 100 + count, dtype=np.int64)
    return list(draw_batches(rows, stage, np.random.default_rng(seed)))


@given(row_counts, batch_stages)
def test_batches_are_of_one_size_and_of_the_sites_rows(count: int, stage: Stage) -> None:
    batches = batches_of(count, stage)
    size = min(stage.batch_size, count)
    assert len(batches) == max(round(stage.epochs * count / size), 1)
    for batch in batches:
        assert len(batch) == size
        assert len(set(batch.tolist())) == size
        assert set(batch.tolist()) <= set(range(100, 100 + count))


@given(st.integers(1, 6), st.integers(2, 9), st.integers(1, 3))
def test_every_row_is_taken_once_a_pass_where_batches_fit(batches: int, size: int, epochs: int) -> None:
    drawn = np.concatenate(batches_of(batches * size, Stage(batch_size=size, epochs=float(epochs))))
    assert (np.bincount(drawn)[100:] == epochs).all()


@given(row_counts, batch_stages)
def test_no_row_is_taken_twice_in_a_pass(count: int, stage: Stage) -> None:
    batches = batches_of(count, stage)
    in_a_pass = count // min(stage.batch_size, count)
    for start in range(0, len(batches), in_a_pass):
        drawn = np.concatenate(batches[start : start + in_a_pass])
        assert len(set(drawn.tolist())) == len(drawn)


def test_passes_are_shuffled_anew() -> None:
    batches = batches_of(32, Stage(batch_size=32, epochs=2.0))
    assert not np.array_equal(batches[0], batches[1])
    assert not np.array_equal(batches[0], np.sort(batches[0]))


# The loop


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "clip_norm": 0.01, "schedule": "constant"}])
def test_the_loop_is_the_plain_loop_bit_for_bit(changes: dict[str, Any]) -> None:
    study = study_of(**changes)
    stage, objective = study.finetune, fresh(study_of(**changes))
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": lambda *a, **k: torch.optim.AdamW(*a, fused=True, **k),
        "sgd": lambda *a, **k: torch.optim.SGD(*a, momentum=0.9, fused=True, **k),
    }
    named = list(objective.named_parameters())
    rest = [p for name, p in named if "encoders" not in name]
    encoders = [p for name, p in named if "encoders" in name]
    optimizer = kinds[stage.optimizer]([{"params": rest}, {"params": encoders}], lr=1e-3, weight_decay=1e-4)
    order, generator = np.random.default_rng(5), Generator().manual_seed(5)
    torch.manual_seed(5)
    batches = [rows for _ in range(2) for rows in np.split(order.permutation(ROWS), 3)]
    losses = []
    for step, rows in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate_factor(stage, (1 + step / 6) / 4)
        optimizer.zero_grad()
        loss = objective.train()(take(rows), generator)
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), stage.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    weights, trained = run(study)
    assert same(weights, read_weights(objective))
    assert (trained.examples, trained.steps) == (12, 6)
    assert trained.loss == pytest.approx(np.mean(losses), rel=1e-6)


def test_the_seed_alone_decides_the_weights() -> None:
    study = study_of()
    first, _ = run(study)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002  # the global state that must not matter
    again, _ = run(study)
    assert same(first, again)
    assert not same(first, run(study, seed=6)[0])


def test_the_global_random_states_are_left_alone() -> None:
    objective = fresh(study_of())
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    run(study_of(), objective=objective)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # type: ignore[index]  # noqa: NPY002


def test_a_round_has_its_place_on_the_schedule() -> None:
    """The same seed in the last round takes smaller steps than in an earlier one."""
    study = study_of(warmup=0.0, optimizer="sgd")
    start = read_weights(fresh(study))

    def moved(round: int) -> float:
        weights, _ = run(study, round=round)
        return sum(float(np.square(weights[name] - start[name]).sum()) for name in start)

    assert moved(4) < 0.5 * moved(1)


def test_clipping_bounds_the_step_and_zero_leaves_it() -> None:
    def moved(clip: float) -> float:
        study = study_of(optimizer="sgd", clip_norm=clip, schedule="constant", warmup=0.0, weight_decay=0.0, epochs=0.3)
        start, (weights, trained) = read_weights(fresh(study)), run(study)
        assert trained.steps == 1
        return math.sqrt(sum(float(np.square(weights[name] - start[name]).sum()) for name in start))

    assert moved(0.01) == pytest.approx(0.01 * 1e-3, rel=1e-2)
    assert moved(0.0) == pytest.approx(moved(1e9))
    assert moved(0.0) > 2 * moved(0.01)


def test_bfloat16_trains_about_alike() -> None:
    plain, short = run(study_of())[1], run(study_of(precision="bfloat16"))[1]
    assert short.loss == pytest.approx(plain.loss, rel=0.05)
    assert short.loss != plain.loss


def test_training_lowers_the_loss() -> None:
    study = study_of(rounds=1, epochs=12.0, lr=3e-2, augmentation={}, warmup=0.0)
    objective = fresh(study)
    before = objective.eval()(ALL, Generator()).item()
    run(study, round=1, objective=objective)
    assert objective.eval()(ALL, Generator()).item() < 0.7 * before


def test_a_site_with_one_row_trains() -> None:
    study = study_of()
    objective = fresh(study)
    optimizer = build_optimizer(objective, study, study.finetune)
    trained = train(
        objective, ROWS[:1], BatchGradients(take, study.finetune, CPU), study.finetune, optimizer, 1, 1, CPU
    )
    assert (trained.examples, trained.steps) == (1, 2)
    assert trained.loss is not None
    assert math.isfinite(trained.loss)
