"""Do gradients become the steps that the study asks for?"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from client.optimizers import Proximal, StageOptimizer, build_optimizer, rate_factor
from shared.config import Stage
from tests.factories import make_study

stages = st.builds(
    Stage, warmup=st.floats(0, 1), schedule=st.sampled_from(["cosine", "constant"]), rounds=st.integers(1, 20)
)
fractions = st.floats(0, 1)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({"oct": nn.Linear(3, 2)})
        self.head = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.tanh(self.encoders["oct"](x))).square().mean()
        return found


INPUTS = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))


def steps(module: Toy, optimizer: Any, count: int = 3, mu: float = 0.0) -> list[torch.Tensor]:
    """The weights after some steps; with ``mu``, of the loss that has FedProx's term in it."""
    anchors = [p.detach().clone() for p in module.parameters()]
    for _ in range(count):
        optimizer.zero_grad()
        loss = module(INPUTS)
        if mu:
            drift = sum((p - a).square().sum() for p, a in zip(module.parameters(), anchors, strict=True))
            loss = loss + mu / 2 * drift
        loss.backward()
        optimizer.step()
    return [p.detach().clone() for p in module.parameters()]


# The learning rate


@given(stages, fractions)
def test_the_rate_is_between_nothing_and_its_peak(stage: Stage, done: float) -> None:
    assert 0.0 <= rate_factor(stage, done) <= 1.0


@given(stages, fractions, fractions)
def test_the_rate_rises_in_warmup_and_then_never_rises(stage: Stage, a: float, b: float) -> None:
    low, high = sorted((a, b))
    if high < stage.warmup:
        assert rate_factor(stage, low) <= rate_factor(stage, high)
    elif low >= stage.warmup:
        assert rate_factor(stage, low) >= rate_factor(stage, high) - 1e-12


def test_the_rate_follows_half_a_cosine_after_a_straight_rise() -> None:
    stage = Stage(warmup=0.2, schedule="cosine")
    assert rate_factor(stage, 0.0) == 0.05  # a first step that does nothing would be wasted
    assert rate_factor(stage, 0.1) == pytest.approx(0.5)
    assert rate_factor(stage, 0.2) == 1.0
    assert rate_factor(stage, 0.6) == pytest.approx(0.5)
    assert rate_factor(stage, 0.4) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert rate_factor(stage, 1.0) == pytest.approx(0.0)


def test_a_constant_rate_stays_at_its_peak() -> None:
    stage = Stage(warmup=0.0, schedule="constant")
    assert [rate_factor(stage, done) for done in (0.0, 0.5, 1.0)] == [1.0] * 3


def test_the_factor_scales_every_group() -> None:
    study = make_study({"finetune.encoder_lr": 0.5, "finetune.lr": 0.1})
    optimizer = StageOptimizer(Toy(), study, study.finetune)
    for factor in (0.5, 0.2, 1.0):
        optimizer.set_rate(factor)
        assert [g["lr"] for g in optimizer._inner.param_groups] == pytest.approx([0.1 * factor, 0.05 * factor])


# Groups


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_stage_names_the_optimizer(optimizer: str) -> None:
    study = make_study({"finetune.optimizer": optimizer, "finetune.lr": 0.05, "finetune.weight_decay": 0.3})
    module, reference = Toy(), Toy()
    kinds: dict[str, Any] = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.3),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.3),
    }
    expected = steps(reference, kinds[optimizer](reference.parameters()))
    for a, b in zip(steps(module, build_optimizer(module, study, study.finetune)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def moved(changes: dict[str, Any], stage: str = "finetune") -> tuple[bool, bool]:
    """Whether encoder and head move."""
    study, module = make_study(changes), Toy()
    before = [p.detach().clone() for p in module.parameters()]
    after = steps(module, build_optimizer(module, study, getattr(study, stage)))
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    return any(changed[:2]), any(changed[2:])


def test_pretrained_encoders_are_frozen_when_their_rate_is_zero() -> None:
    assert moved({"finetune.encoder_lr": 0.0}) == (False, True)
    weights = {"oct": "w.pth"}
    assert moved({"finetune.encoder_lr": 0.0, "pretrain.rounds": 0, "model.image.weights": weights}) == (False, True)


def test_encoders_that_start_from_nothing_are_never_frozen() -> None:
    assert moved({"finetune.encoder_lr": 0.0, "pretrain.rounds": 0}) == (True, True)


def test_pretraining_trains_the_encoders() -> None:
    assert moved({"pretrain.encoder_lr": 0.0}, "pretrain") == (True, True)


def test_frozen_encoders_thaw_for_a_stage_that_trains_them() -> None:
    module = Toy()
    frozen, thawed = make_study({"finetune.encoder_lr": 0.0}), make_study()
    build_optimizer(module, frozen, frozen.finetune)
    build_optimizer(module, thawed, thawed.finetune)
    assert all(p.requires_grad for p in module.parameters())


# FedProx


@pytest.mark.parametrize("mu", [0.01, 0.5, 3.0])
def test_the_proximal_pull_is_the_gradient_of_fedproxs_loss(mu: float) -> None:
    module, reference = Toy(), Toy()
    study = make_study({"finetune.optimizer": "sgd", "finetune.lr": 0.1})
    optimizer = Proximal(StageOptimizer(module, study, study.finetune), module, mu)
    inner = StageOptimizer(reference, study, study.finetune)
    for a, b in zip(steps(module, optimizer), steps(reference, inner, mu=mu), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_study_asks_for_the_pull() -> None:
    plain, proximal = make_study(), make_study({"strategy.proximal_mu": 0.1})
    assert isinstance(build_optimizer(Toy(), plain, plain.finetune), StageOptimizer)
    assert isinstance(build_optimizer(Toy(), proximal, proximal.finetune), Proximal)


def test_a_stronger_pull_stays_closer_to_the_start() -> None:
    drifts = []
    for mu in (0.0, 0.5, 5.0):
        module = Toy()
        start = [p.detach().clone() for p in module.parameters()]
        study = make_study({"finetune.optimizer": "sgd", "finetune.lr": 0.05, "strategy.proximal_mu": mu})
        after = steps(module, build_optimizer(module, study, study.finetune), count=20)
        drifts.append(sum(float((a - b).square().sum()) for a, b in zip(after, start, strict=True)))
    assert all(a > b for a, b in itertools.pairwise(drifts))


def test_the_pull_leaves_frozen_weights_alone() -> None:
    study, module = make_study({"finetune.encoder_lr": 0.0, "strategy.proximal_mu": 1.0}), Toy()
    steps(module, build_optimizer(module, study, study.finetune))
    assert all(p.grad is None for p in module.encoders.parameters())
