"""Is the supervised loss the weighted BCE of the labelled cases?"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from shared.config import FINETUNE, PRETRAIN
from shared.objectives.registry import build_objective
from shared.objectives.supervised import SupervisedObjective, class_weights
from shared.statistics import Statistics
from tests.factories import make_cases, make_study

prevalences = st.floats(0.001, 0.999)


@given(prevalences, st.floats(0, 1))
def test_weights_average_to_one_over_the_federation(prevalence: float, balance: float) -> None:
    positive, negative = class_weights(prevalence, balance)
    assert prevalence * positive + (1 - prevalence) * negative == pytest.approx(1.0)
    assert min(positive, negative) > 0


@given(prevalences)
def test_balance_goes_from_cases_alike_to_classes_alike(prevalence: float) -> None:
    assert class_weights(prevalence, 0.0) == pytest.approx((1.0, 1.0))
    positive, negative = class_weights(prevalence, 1.0)
    assert prevalence * positive == pytest.approx((1 - prevalence) * negative)


@given(prevalences, st.floats(0.01, 1))
def test_the_rarer_class_never_weighs_less(prevalence: float, balance: float) -> None:
    positive, negative = class_weights(prevalence, balance)
    assert (positive >= negative) == (prevalence <= 0.5) or positive == pytest.approx(negative)


def objective_of(changes: dict[str, object] | None = None, prevalence: float = 0.2) -> SupervisedObjective:
    study = make_study(changes)
    objective = build_objective(study, FINETUNE, Statistics((0.0, 0.0), (1.0, 1.0), prevalence))
    assert isinstance(objective, SupervisedObjective)
    return objective


def test_the_loss_is_the_weighted_negative_log_likelihood() -> None:
    objective = objective_of({"finetune.class_balance": 1.0})
    logits, labels = torch.tensor([-1.0, 0.3, 2.0]), torch.tensor([0.0, 1.0, 0.0])
    total = 0.0
    for logit, label in zip(logits.tolist(), labels.tolist(), strict=True):
        risk = 1 / (1 + math.exp(-logit))
        weight = 0.5 / 0.2 if label else 0.5 / 0.8
        total += -weight * (math.log(risk) if label else math.log(1 - risk))
    assert float(objective.weighted_bce(logits, labels)) == pytest.approx(total / 3, rel=1e-5)


def test_a_huge_logit_has_a_finite_loss() -> None:
    loss = objective_of().weighted_bce(torch.tensor([1e4, -1e4]), torch.tensor([0.0, 1.0]))
    assert torch.isfinite(loss)


def test_the_loss_of_a_case_is_the_same_whoever_is_beside() -> None:
    objective = objective_of({"finetune.augmentation": {"flip": 0.5, "noise": 0.2}}).eval()
    assert not objective.mixes_examples

    def loss(first: int, last: int) -> float:
        cases = make_cases(4)
        labels = cases.labels.clone()
        labels[0], labels[3] = first, last
        images = {name: image.clone() for name, image in cases.images.items()}
        images["oct"][0] = images["oct"][0] // (1 + first)
        images["oct"][3] = images["oct"][3].flip(-1) if last else images["oct"][3]
        found: torch.Tensor = objective(replace(cases, images=images, labels=labels), Generator().manual_seed(1))
        return found.item()

    assert loss(1, 0) - loss(0, 0) == pytest.approx(loss(1, 1) - loss(0, 1), abs=1e-5)
    assert loss(1, 0) != loss(0, 0)


def test_gradients_reach_every_weight() -> None:
    objective = objective_of(
        {"model.fusion_hidden": 4, "model.dropout": 0.0, "model.clinical": {"dropout": 0.0}}
    ).eval()
    cases = make_cases(6)
    assert cases.recorded is not None
    cases.recorded[0] = False
    cases.shown["oct"][1] = cases.shown["ir"][2] = False
    objective(cases, Generator().manual_seed(0)).backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_what_is_not_shown_is_not_augmented_into_view() -> None:
    objective = objective_of({"finetune.augmentation": {"noise": 1.0}}).eval()
    cases = make_cases(4)
    cases.shown["oct"][1] = False
    other = {name: image.clone() for name, image in cases.images.items()}
    other["oct"][1] = 255 - other["oct"][1]
    one, two = (objective(c, Generator().manual_seed(0)) for c in (cases, replace(cases, images=other)))
    assert torch.equal(one, two)


@pytest.mark.parametrize("stage", [PRETRAIN, FINETUNE])
@pytest.mark.parametrize("kind", ["simclr", "mae"])
def test_every_machine_starts_from_the_same_weights(stage: str, kind: str) -> None:
    study = make_study({"objective": {"kind": kind, **({"patch": 8} if kind == "mae" else {})}})
    statistics = Statistics.neutral(study)
    torch.manual_seed(1)
    one = build_objective(study, stage, statistics)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    other = build_objective(study, stage, statistics)
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    another = build_objective(make_study({"seed": 2}), FINETUNE, statistics)
    assert not torch.equal(next(another.parameters()), next(build_objective(study, FINETUNE, statistics).parameters()))
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)
