"""Is one patient's influence on a step bounded by the clip, and hidden by noise that nobody can predict?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Generator, Tensor

from client.dpsgd import PatientGradients, example_gradients
from client.secret import numpy_generator, torch_generator
from client.store import Rows
from shared.accounting import Release
from shared.config import FINETUNE, PRETRAIN, PatientDPSGD, Stage, Study
from shared.inputs import Batch, Cases, Scans
from shared.objectives.objective import Objective
from shared.objectives.registry import build_objective
from shared.objectives.simclr import nt_xent
from shared.statistics import Statistics
from tests.factories import make_cases, make_scans, make_study

CPU = torch.device("cpu")
MAE = {"kind": "mae", "patch": 8, "decoder_width": 8}
CONVNEXT = {"name": "convnext_atto", "arguments": {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8]}}
RESNET, VIT = {"name": "test_resnet"}, {"name": "test_vit", "arguments": {"patch_size": 8}}
ROWS = 10
SUBJECTS = np.array([3, 3, 5, 7, 7, 7, 9, 11, 12, 12])  # 6 patients with 1 to 3 examples


def study_of(**changes: Any) -> Study:
    return make_study({"objective": MAE, "model.dropout": 0.0, "model.clinical": {"dropout": 0.0}, **changes})


def cases() -> Cases:
    """With cases that lack a scan, a modality, the record, or everything."""
    made = make_cases(ROWS, seed=3)
    assert made.recorded is not None
    assert made.clinical is not None
    made.shown["oct"][1, 1] = made.shown["oct"][2] = made.shown["ir"][3:6] = made.recorded[6] = False
    for lacking in (made.shown["oct"], made.shown["ir"], made.recorded):
        lacking[7] = False
    made.clinical[4, :2] = torch.nan
    return made


def scans() -> Scans:
    made = make_scans(ROWS, seed=3)
    made.shown["oct"][:3] = made.shown["ir"][5:8] = made.shown["oct"][7] = False
    return made


def rows_of(batch: Batch) -> Callable[[Rows], Batch]:
    def pick(tensors: dict[str, Tensor], at: Tensor) -> dict[str, Tensor]:
        return {name: tensor[at] for name, tensor in tensors.items()}

    def take(rows: Rows) -> Batch:
        at = torch.from_numpy(rows)
        if isinstance(batch, Scans):
            return Scans(pick(batch.images, at), pick(batch.shown, at), pick(batch.others, at))
        assert batch.clinical is not None
        assert batch.recorded is not None
        images, shown = pick(batch.images, at), pick(batch.shown, at)
        return Cases(images, shown, batch.clinical[at], batch.recorded[at], batch.labels[at])

    return take


LINEAR = {"patch_size": 1, "kernel_sizes": 3, "conv_mlp": False}  # as the small model; its last maps are 2 x 2
LINEAR_CONVNEXT = {**CONVNEXT, "arguments": {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8], **LINEAR}}
CHOICES = [
    (FINETUNE, {"model.image": CONVNEXT}),
    (FINETUNE, {"model.image": LINEAR_CONVNEXT}),
    (FINETUNE, {"model.image": RESNET, "model.fusion": "intermediate", "model.fusion_hidden": 3}),
    (FINETUNE, {"model.image": {**VIT, "shared": True}}),
    (FINETUNE, {"modalities": ["clinical"], "pretrain.rounds": 0}),
    (PRETRAIN, {"model.image": CONVNEXT}),
    (PRETRAIN, {"model.image": {**RESNET, "shared": True}}),
    (PRETRAIN, {"model.image": VIT}),
]


def fresh(stage: str, changes: dict[str, Any]) -> tuple[Objective, Callable[[Rows], Batch], Stage]:
    study = study_of(**changes)
    objective = build_objective(study, stage, Statistics.neutral(study))
    for weight in objective.parameters():  # zeros at the start would hide what they multiply
        weight.data += 0.02 * torch.randn(weight.shape, generator=Generator().manual_seed(1))
    config = study.finetune if stage == FINETUNE else study.pretrain
    return objective.train(), rows_of(cases() if stage == FINETUNE else scans()), config


def private(
    take: Callable[[Rows], Batch],
    stage: Stage,
    noise: float = 1e-30,
    clip: float = 1.0,
    subjects: NDArray[np.int64] = SUBJECTS,
    key: bytes = bytes(32),
    **changes: Any,
) -> PatientGradients:
    release = Release(noise, changes.pop("sampling_rate", 1.0), changes.pop("steps", 1))
    privacy = PatientDPSGD(clip=clip, **changes)
    return PatientGradients(take, subjects, stage, privacy, release, numpy_generator(key), torch_generator(key, CPU))


def step(objective: Objective, gradients: PatientGradients, rows: Rows) -> Tensor:
    """The sum of the patients' clipped gradients, with its noise, flat."""
    gradients._expected = 1.0
    for weight in objective.parameters():
        weight.grad = None
    gradients.backward(objective, rows, Generator().manual_seed(0))
    return torch.cat([w.grad.flatten() for w in objective.parameters() if w.grad is not None]).double()


# The gradients


@pytest.mark.parametrize(("stage", "changes"), CHOICES)
def test_gradients_by_vmap_are_those_of_autograd_one_example_at_a_time(stage: str, changes: dict[str, Any]) -> None:
    objective, take, config = fresh(stage, changes)
    weights = dict(objective.named_parameters())
    for at, examples in take(np.arange(ROWS)).alike():
        prepared = objective.prepare(examples, Generator().manual_seed(2))
        if not prepared.tensors():  # an eye without scans
            continue
        found = example_gradients(objective, weights, prepared, config.precision)
        for place in range(len(at)):
            alone = prepared.of_one({name: tensor[place] for name, tensor in prepared.tensors().items()})
            expected = torch.autograd.grad(objective.loss(alone), list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, expected, strict=True):
                wanted = torch.zeros_like(weights[name]) if gradient is None else gradient
                torch.testing.assert_close(found[name][place], wanted, rtol=1e-3, atol=2e-5)


def test_a_patients_examples_are_averaged_and_clipped_as_one() -> None:
    objective, take, config = fresh(FINETUNE, {"model.image": CONVNEXT})
    together = step(objective, private(take, config, clip=0.05), np.arange(ROWS))
    total = torch.zeros_like(together)
    for subject in np.unique(SUBJECTS):
        objective.zero_grad()
        own = np.flatnonzero(np.isin(SUBJECTS, subject))
        for row in own:
            (objective(take(np.array([row])), Generator()) / len(own)).backward()
        flat = torch.cat(
            [torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in objective.parameters()]
        )
        total += (flat * min(1.0, 0.05 / float(flat.norm()))).double()
    torch.testing.assert_close(together, total, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("stage", "changes"), CHOICES)
def test_how_many_patients_are_in_memory_at_once_changes_nothing(stage: str, changes: dict[str, Any]) -> None:
    objective, take, config = fresh(stage, changes)
    whole, apart = (
        step(objective, private(take, config, clip=0.1, micro_batch=n, per_patient=2), np.arange(ROWS)) for n in (64, 2)
    )
    if stage == PRETRAIN:  # which patches are hidden is drawn in another order
        assert whole.shape == apart.shape
    else:
        torch.testing.assert_close(whole, apart, rtol=1e-4, atol=1e-6)


# The clipping law


@settings(max_examples=8)
@given(
    st.sampled_from(CHOICES[:4]),
    st.sets(st.sampled_from(np.unique(SUBJECTS).tolist()), min_size=1),
    st.floats(0.01, 3.0),
    st.sampled_from(["float32", "bfloat16"]),
    st.floats(0.1, 3.0),
)
def test_one_patient_moves_the_sum_by_the_clip_at_most(
    choice: tuple[str, dict[str, Any]], patients: set[int], clip: float, precision: str, scale: float
) -> None:
    objective, take, _ = fresh(*choice)
    with torch.no_grad():
        for weight in objective.parameters():
            weight *= scale
    stage = Stage(precision=precision)
    one = sorted(patients)[0]
    rows = np.flatnonzero(np.isin(SUBJECTS, list(patients)))[:4]
    with_all, without = (
        step(objective, private(take, stage, clip=clip), chosen) for chosen in (rows, rows[SUBJECTS[rows] != one])
    )
    assert float((with_all - without).norm()) <= clip * (1 + 1e-5) + 1e-6


@settings(max_examples=4)
@given(st.sampled_from(CHOICES[4:]), st.sampled_from(np.unique(SUBJECTS).tolist()), st.floats(0.01, 3.0))
def test_one_patient_moves_the_sum_of_pretraining_by_the_clip_at_most(
    choice: tuple[str, dict[str, Any]], one: int, clip: float
) -> None:
    """Which patches are hidden is drawn for each patient apart; one at a time, so that the draws of others stay."""
    objective, take, stage = fresh(*choice)
    own = np.flatnonzero(np.isin(SUBJECTS, one))
    nobody = step(objective, private(take, stage, clip=clip), own[:0])
    assert float((step(objective, private(take, stage, clip=clip), own) - nobody).norm()) <= clip * (1 + 1e-5)


def test_nt_xent_breaks_the_law_though_every_part_is_clipped() -> None:
    """One more scan, to which all others are close: it turns the parts of all others, each of which is clipped."""
    count, clip = 16, 0.1
    scans = torch.cat([torch.cat([torch.ones(count, 1), torch.eye(count)], dim=1), torch.eye(count + 1)[:1]])

    def clipped_sum(present: int) -> Tensor:
        total = torch.zeros(count + 1, count + 1)
        for anchor in range(present):
            weight = torch.eye(count + 1).requires_grad_()
            projected = scans[:present] @ weight
            # As accounting by example sees it: an example's gradient goes through its own activations.
            own = torch.where(torch.arange(present)[:, None] == anchor, projected, projected.detach())
            gradient = torch.autograd.grad(present * nt_xent(own, own, 0.05), weight)[0]
            total += gradient * min(1.0, clip / float(gradient.norm()))
        return total

    assert float((clipped_sum(count + 1) - clipped_sum(count)).norm()) > 5 * clip


def test_a_gradient_that_is_not_finite_counts_nothing() -> None:
    objective, take, stage = fresh(FINETUNE, {"modalities": ["clinical"], "pretrain.rounds": 0})

    def poisoned(rows: Rows) -> Batch:
        batch = take(rows)
        assert isinstance(batch, Cases)
        assert batch.clinical is not None
        batch.clinical[rows == 2, -1] = math.inf
        return batch

    with_all, without = (
        step(objective, private(poisoned, stage), chosen) for chosen in (np.arange(ROWS), np.delete(np.arange(ROWS), 2))
    )
    assert torch.isfinite(with_all).all()
    assert float((with_all - without).norm()) <= 1 + 1e-5


# Noise and samples


def test_a_step_of_nobody_is_noise_of_the_stated_deviation() -> None:
    objective, take, stage = fresh(FINETUNE, {"model.image": CONVNEXT})
    found = step(objective, private(take, stage, noise=3.0, clip=0.5), np.arange(0))
    reached = sum(w.grad is not None for w in objective.parameters())
    assert reached == len(list(objective.parameters()))
    count = len(found)
    assert count > 2000
    assert float(found.std()) == pytest.approx(1.5, rel=4 / math.sqrt(2 * count))
    assert abs(float(found.mean())) < 4 * 1.5 / math.sqrt(count)
    kurtosis = float(((found - found.mean()) ** 4).mean() / found.var() ** 2)
    assert kurtosis == pytest.approx(3.0, abs=4 * math.sqrt(24 / count))


def test_weights_that_no_loss_reaches_get_no_noise() -> None:
    objective, take, stage = fresh(PRETRAIN, {"model.image": CONVNEXT})
    step(objective, private(take, stage, noise=3.0), np.arange(0))
    untouched = {name for name, weight in objective.named_parameters() if weight.grad is None}
    assert untouched
    assert all("head.norm" in name for name in untouched)


def test_frozen_weights_get_no_gradient() -> None:
    objective, take, stage = fresh(FINETUNE, {"model.image": CONVNEXT})
    for name, weight in objective.named_parameters():
        weight.requires_grad_("encoders." not in name)
    step(objective, private(take, stage), np.arange(ROWS))
    for name, weight in objective.named_parameters():
        assert (weight.grad is None) == ("encoders." in name)


def test_the_same_secret_gives_the_same_bits_and_another_gives_others() -> None:
    objective, take, stage = fresh(FINETUNE, {"modalities": ["clinical"], "pretrain.rounds": 0})
    one, same, other = (
        step(objective, private(take, stage, noise=1.0, key=bytes([k]) * 32), np.arange(ROWS)) for k in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not (one == other).any()


def test_dropout_and_masks_are_drawn_for_each_patient_apart() -> None:
    objective, _, _ = fresh(FINETUNE, {"modalities": ["clinical"], "pretrain.rounds": 0, "model.dropout": 0.5})
    twins = make_cases(1)
    assert twins.clinical is not None
    assert twins.recorded is not None
    alike = Cases({}, {}, twins.clinical.expand(8, -1), twins.recorded.expand(8), twins.labels.expand(8))
    found = example_gradients(objective, dict(objective.named_parameters()), alike, "float32")
    assert len({tuple(row.tolist()) for row in found["model.heads.clinical.weight"].flatten(1)}) > 1


@given(st.floats(0.02, 0.6), st.integers(0, 99))
@settings(max_examples=10)
def test_every_patient_is_in_a_step_by_a_chance_of_its_own(rate: float, seed: int) -> None:
    objective_free: Any = None
    subjects = np.repeat(np.arange(40), 2)
    gradients = private(
        objective_free, Stage(), subjects=subjects, key=bytes([seed]) * 32, sampling_rate=rate, steps=400
    )
    drawn = [set(subjects[rows].tolist()) for rows in gradients.draw(np.arange(80), 0)]
    assert len(drawn) == 400
    sizes = np.array([len(step) for step in drawn])
    deviation = math.sqrt(40 * rate * (1 - rate))
    assert sizes.mean() == pytest.approx(40 * rate, abs=5 * deviation / math.sqrt(400))
    assert sizes.std() == pytest.approx(deviation, rel=0.25)  # a batch of fixed size has none
    often = np.array([sum(patient in step for step in drawn) for patient in range(40)]) / 400
    assert abs(often - rate).max() < 5.5 * math.sqrt(rate * (1 - rate) / 400)
    assert gradients._expected == pytest.approx(40 * rate)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_patient_has_more_examples_in_a_step_than_allowed(most: int) -> None:
    gradients = private(None, Stage(), sampling_rate=1.0, steps=5, per_patient=most)  # type: ignore[arg-type]
    for rows in gradients.draw(np.arange(ROWS), 0):
        assert len(set(rows.tolist())) == len(rows)
        expected = np.minimum(np.unique(SUBJECTS, return_counts=True)[1], most)
        assert (np.unique(SUBJECTS[rows], return_counts=True)[1] == expected).all()
