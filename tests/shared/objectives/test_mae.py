"""Is the masked autoencoder the paper's: nothing of a hidden patch, nothing of another patient?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from shared.config import PRETRAIN
from shared.errors import ConfigError
from shared.inputs import Scans
from shared.objectives.mae import (
    MAEObjective,
    MapDecoder,
    Masking,
    TokenDecoder,
    draw_hidden,
    patchify,
    reconstruction_loss,
)
from shared.objectives.registry import build_objective
from shared.statistics import Statistics
from tests.factories import make_scans, make_study

VIT = {"name": "test_vit", "arguments": {"patch_size": 8}}
VIT_WITHOUT_CLASS = {"name": "test_vit", "arguments": {"patch_size": 8, "class_token": False, "global_pool": "avg"}}
VIT_REGISTERS = {"name": "test_vit", "arguments": {"patch_size": 8, "reg_tokens": 2, "dynamic_img_size": True}}
CONVNEXT = {"name": "convnext_atto", "arguments": {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8]}}
RESNET = {"name": "test_resnet"}
ENCODERS = [VIT, VIT_WITHOUT_CLASS, VIT_REGISTERS, CONVNEXT, RESNET]


def objective_of(encoder: dict[str, Any], **changes: Any) -> MAEObjective:
    config = {"kind": "mae", "patch": 8, "decoder_width": 16, **changes}
    study = make_study({"model.image": encoder, "objective": config})
    objective = build_objective(study, PRETRAIN, Statistics.neutral(study))
    assert isinstance(objective, MAEObjective)
    return objective.eval()


@given(st.integers(1, 3), st.sampled_from([2, 4]), st.integers(1, 4), st.integers(1, 4))
def test_patches_are_the_slices_of_the_image(count: int, patch: int, rows: int, columns: int) -> None:
    images = torch.randn(count, 1, rows * patch, columns * patch)
    found = patchify(images, patch)
    assert found.shape == (count, rows * columns, patch * patch)
    for n in range(count):
        for r in range(rows):
            for c in range(columns):
                block = images[n, 0, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
                assert torch.equal(found[n, r * columns + c], block.flatten())


@given(st.integers(1, 5), st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 99))
def test_as_many_patches_are_hidden_as_asked_but_never_none_or_all(
    count: int, patches: int, ratio: float, seed: int
) -> None:
    hidden = draw_hidden(count, patches, ratio, Generator().manual_seed(seed))
    assert hidden.shape == (count, patches)
    each = min(max(round(patches * ratio), 1), patches - 1)
    assert (hidden.sum(dim=1) == each).all()


def test_every_patch_is_hidden_equally_often() -> None:
    often = draw_hidden(4000, 16, 0.75, Generator().manual_seed(0)).float().mean(dim=0)
    assert ((often - 0.75).abs() < 0.03).all()


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_mean_square_over_hidden_patches(normalise: bool) -> None:
    generator = Generator().manual_seed(0)
    predicted, patches = torch.randn(2, 3, 6, 4, generator=generator)
    hidden = draw_hidden(3, 6, 0.5, generator)
    total, number = 0.0, 0
    for n in range(3):
        for k in range(6):
            if not hidden[n, k]:
                continue
            target = patches[n, k].double().numpy()
            if normalise:
                target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            total += float(((predicted[n, k].double().numpy() - target) ** 2).sum())
            number += 4
    assert float(reconstruction_loss(predicted, patches, Masking.of(hidden).hidden, normalise)) == pytest.approx(
        total / number, rel=1e-5
    )


@pytest.mark.parametrize("encoder", ENCODERS)
def test_hidden_pixels_cannot_influence_the_prediction(encoder: dict[str, Any]) -> None:
    objective = objective_of(encoder)
    generator = Generator().manual_seed(1)
    images = torch.randn(3, 1, 32, 32, generator=generator)
    hidden = draw_hidden(3, 16, 0.75, generator)
    masking = Masking.of(hidden)
    assert torch.equal(masking.mask, hidden)
    mask = hidden.view(3, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    decoder, own = objective.decoders["oct"], objective.encoders["oct"]
    expected = decoder(own, images, masking)
    assert expected.shape == (3, 16, 64)
    spoilt = torch.where(mask, torch.randn(images.shape, generator=generator) * 50, images)
    assert torch.equal(decoder(own, spoilt, masking), expected)
    seen = torch.where(mask, images, images + 1.0 * torch.randn(images.shape, generator=generator))
    assert not torch.allclose(decoder(own, seen, masking), expected)


@pytest.mark.parametrize("encoder", [VIT, VIT_WITHOUT_CLASS, VIT_REGISTERS])
def test_a_vision_transformer_that_sees_all_patches_encodes_as_timm_does(encoder: dict[str, Any]) -> None:
    from shared.objectives.mae import _encode_visible

    own = objective_of(encoder).encoders["oct"]
    images = torch.randn(2, 1, 32, 32)
    found = _encode_visible(own, images, torch.arange(16).expand(2, -1))
    expected = own.forward_features(images)[:, own.num_prefix_tokens :]  # type: ignore[operator, index, misc]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("encoder", "kind"), [(VIT, TokenDecoder), (CONVNEXT, MapDecoder), (RESNET, MapDecoder)])
def test_the_decoder_fits_the_encoder(encoder: dict[str, Any], kind: type) -> None:
    assert isinstance(objective_of(encoder).decoders["ir"], kind)


def test_another_patch_than_the_encoders_own_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"objective\.patch must be the patch of the encoder, got 4\. Set objective\.pa"
    ):
        objective_of(VIT, patch=4)


def changed(scans: Scans, row: int) -> Scans:
    images = {name: image.clone() for name, image in scans.images.items()}
    for image in images.values():
        image[row] = 255 - image[row].flip(-1) // 2
    return replace(scans, images=images)


def loss_of(objective: MAEObjective, scans: Scans) -> Tensor:
    """With its gradient; for a number, ``number_of``."""
    loss: Tensor = objective(scans, Generator().manual_seed(4))
    return loss


def number_of(objective: MAEObjective, scans: Scans) -> float:
    return loss_of(objective, scans).item()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_loss_of_a_patient_is_the_same_whoever_is_beside(encoder: dict[str, Any]) -> None:
    """The mean is of terms of one patient each: changing one and another add up."""
    objective, scans = objective_of(encoder), make_scans(4)
    assert not objective.mixes_examples
    neither, one, other = scans, changed(scans, 0), changed(scans, 3)
    both = changed(one, 3)
    alone = number_of(objective, one) - number_of(objective, neither)
    beside = number_of(objective, both) - number_of(objective, other)
    assert abs(alone) > 1e-4
    assert alone == pytest.approx(beside, rel=1e-3, abs=2e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_reach_every_weight_that_makes_features(encoder: dict[str, Any], shared: bool) -> None:
    """The norm of the pooled embedding comes after them."""
    objective = objective_of({**encoder, "shared": shared})
    loss_of(objective, make_scans(6)).backward()
    for name, parameter in objective.named_parameters():
        pooled = "head.norm" in name or "fc_norm" in name
        assert (parameter.grad is None) == pooled, name
        assert pooled or torch.isfinite(parameter.grad).all(), name  # type: ignore[arg-type]


def test_an_encoder_without_scans_in_the_batch_is_left_out() -> None:
    objective, scans = objective_of(CONVNEXT), make_scans(4)
    nowhere = replace(scans, shown={**scans.shown, "ir": torch.zeros(4, dtype=torch.bool)})
    loss_of(objective, nowhere).backward()
    assert all(p.grad is None for p in objective.encoders["ir"].parameters())
    assert any(p.grad is not None for p in objective.encoders["oct"].parameters())


def test_a_batch_without_scans_has_no_loss_and_still_reaches_every_weight() -> None:
    objective = objective_of(CONVNEXT)
    empty = replace(make_scans(4), shown=dict.fromkeys(("oct", "ir"), torch.zeros(4, dtype=torch.bool)))
    loss = loss_of(objective, empty)
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None for p in objective.parameters())


def test_training_lowers_the_loss() -> None:
    objective, scans = objective_of(VIT), make_scans(4)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    first = number_of(objective, scans)
    for _ in range(30):
        optimizer.zero_grad()
        loss_of(objective, scans).backward()
        optimizer.step()
    assert number_of(objective, scans) < 0.9 * first
