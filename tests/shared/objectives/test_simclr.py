"""Is NT-Xent the paper's, and are the right pairs positive?"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from shared.config import PRETRAIN, Augmentation
from shared.inputs import Scans
from shared.models.images import standardise
from shared.objectives.registry import build_objective
from shared.objectives.simclr import SimCLRObjective, nt_xent
from shared.statistics import Statistics
from tests.factories import make_scans, make_study


def reference(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Equation 1 and algorithm 1 of arXiv 2002.05709, with loops: z_{2k-1} and z_{2k} are the views of example k."""
    z = [vector for pair in zip(first, second, strict=True) for vector in pair]
    n = len(first)

    def s(i: int, j: int) -> float:
        return float(z[i] @ z[j] / (math.sqrt(z[i] @ z[i]) * math.sqrt(z[j] @ z[j])))

    def loss(i: int, j: int) -> float:
        below = sum(math.exp(s(i, k) / temperature) for k in range(2 * n) if k != i)
        return -math.log(math.exp(s(i, j) / temperature) / below)

    return sum(loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k) for k in range(n)) / (2 * n)


@given(st.integers(2, 6), st.integers(2, 5), st.sampled_from([0.1, 0.5, 1.0, 3.0]), st.integers(0, 999))
def test_nt_xent_is_the_papers_equation(batch: int, width: int, temperature: float, seed: int) -> None:
    first, second = np.random.default_rng(seed).normal(size=(2, batch, width))
    found = nt_xent(torch.from_numpy(first), torch.from_numpy(second), temperature)
    assert float(found) == pytest.approx(reference(first, second, temperature), rel=1e-4)


def test_nt_xent_does_not_depend_on_lengths_or_on_which_view_is_first() -> None:
    first, second = torch.randn(2, 5, 4, generator=Generator().manual_seed(0))
    expected = nt_xent(first, second, 0.3)
    torch.testing.assert_close(nt_xent(second, first, 0.3), expected)
    torch.testing.assert_close(nt_xent(first * 7, second * 0.1, 0.3), expected)


def test_equal_views_of_different_scans_have_the_least_loss() -> None:
    apart = torch.eye(4)
    least = nt_xent(apart, apart, 0.1)
    assert least < nt_xent(apart, apart.roll(1, 0), 0.1)
    assert float(least) == pytest.approx(math.log1p(6 * math.exp(-10.0)), rel=1e-3)


def objective_of(changes: dict[str, Any] | None = None) -> SimCLRObjective:
    study = make_study({"pretrain.augmentation": {"flip": 0.5, "noise": 0.2}, **(changes or {})})
    objective = build_objective(study, PRETRAIN, Statistics.neutral(study))
    assert isinstance(objective, SimCLRObjective)
    return objective


def loss_of(objective: SimCLRObjective, scans: Scans, seed: int = 0) -> float:
    loss: torch.Tensor = objective(scans, Generator().manual_seed(seed))
    return loss.item()


def with_eye(scans: Scans, row: int, value: int = 0) -> Scans:
    images = {name: image.clone() for name, image in scans.images.items()}
    images["oct"][row, :, : 4 + value] = 255 - images["oct"][row, :, : 4 + value]
    return replace(scans, images=images)


def test_one_example_changes_the_loss_of_the_others() -> None:
    """So ``mixes_examples`` is true: the loss is not a mean of terms of one patient each."""
    objective, scans = objective_of(), make_scans(4)
    assert objective.mixes_examples
    a, b = scans, with_eye(scans, 0, 9)
    alone = loss_of(objective, a) - loss_of(objective, b)
    beside = loss_of(objective, with_eye(a, 3, 20)) - loss_of(objective, with_eye(b, 3, 20))
    assert abs(alone - beside) > 1e-6


def test_the_loss_is_that_of_the_projections_of_two_views() -> None:
    objective, scans = objective_of({"pretrain.augmentation": {}}), make_scans(4)
    expected = []
    for name in ("oct", "ir"):
        z = objective.projections[name](objective.encoders[name](standardise(scans.images[name].float())))
        expected.append(reference(*[z.detach().double().numpy()] * 2, 0.2))
    assert loss_of(objective, scans) == pytest.approx(np.mean(expected), rel=1e-4)


def test_two_scans_of_a_patient_are_the_views_where_the_study_asks() -> None:
    views, patient = (objective_of({"objective": {"kind": "simclr", "positives": p}}) for p in ("views", "patient"))
    scans = make_scans(4)
    others = replace(scans, others=make_scans(4, seed=7).others)
    assert loss_of(views, scans) == loss_of(views, others)
    assert loss_of(patient, scans) != loss_of(patient, others)


def test_eyes_without_both_scans_take_no_part_in_the_pair_of_modalities() -> None:
    kind = {"kind": "simclr", "projection_width": 8}
    across, within = (
        objective_of({"objective": {**kind, "between_modalities": True}}),
        objective_of({"objective": kind}),
    )
    across.load_state_dict(within.state_dict())
    unpaired = torch.tensor([[True, False], [True, False], [False, True], [False, True]]).T
    scans = make_scans(4)
    apart = replace(scans, shown={"oct": unpaired[0], "ir": unpaired[1]})
    assert loss_of(across, apart) == loss_of(within, apart)
    assert loss_of(across, scans) != loss_of(within, scans)


@pytest.mark.parametrize("shown", [[False] * 4, [True, False, False, False]])
def test_a_batch_that_teaches_nothing_has_no_loss_and_still_reaches_every_weight(shown: list[bool]) -> None:
    objective = objective_of()
    scans = replace(make_scans(4), shown=dict.fromkeys(("oct", "ir"), torch.tensor(shown)))
    loss = objective(scans, Generator().manual_seed(0))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())


def test_hidden_scans_do_not_matter() -> None:
    objective = objective_of({"pretrain.augmentation": {}})
    shown = {"oct": torch.tensor([False, True, True, True]), "ir": torch.ones(4, dtype=torch.bool)}
    scans = replace(make_scans(4), shown=shown)
    assert loss_of(objective, scans) == loss_of(objective, with_eye(scans, 0, 9))


@pytest.mark.parametrize("changes", [{}, {"objective": {"kind": "simclr", "between_modalities": True}}])
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_reach_every_weight(changes: dict[str, Any], shared: bool) -> None:
    objective = objective_of({**changes, "model.image.shared": shared})
    objective(make_scans(6), Generator().manual_seed(0)).backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_seed_alone_decides_the_views() -> None:
    objective, scans = objective_of({"pretrain.augmentation": vars(Augmentation(noise=0.5))}), make_scans(4)
    before = torch.random.get_rng_state()
    assert loss_of(objective, scans, 1) == loss_of(objective, scans, 1) != loss_of(objective, scans, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
