"""Is any timm model a one-channel encoder without batch statistics?"""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from shared.config import ImageEncoder, Images
from shared.errors import ConfigError
from shared.models.images import build_image_encoder, embedding_width, standardise, with_group_norm

SIZE = Images(height=64, width=64)
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


@pytest.mark.parametrize(
    "name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050"]
)
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_any_timm_model_takes_one_channel_and_the_studys_size(name: str, size: tuple[int, int]) -> None:
    encoder = build_image_encoder(ImageEncoder(name), Images(*size)).eval()
    assert encoder(torch.randn(2, 1, *size)).shape == (2, embedding_width(encoder))


MODELS = [
    "test_efficientnet",
    "test_resnet",
    "resnet18",
    "regnetx_002",
    "mobilenetv3_small_050",
    "densenet121",
    "levit_128s",
]


@pytest.mark.parametrize("name", MODELS)
def test_group_norm_leaves_no_batch_norm_and_every_activation(name: str) -> None:
    size = Images(224, 224) if "levit" in name else SIZE
    plain = build_image_encoder(ImageEncoder(name, group_norm=False), size)
    grouped = build_image_encoder(ImageEncoder(name), size)
    norms = [module for module in plain.modules() if isinstance(module, BATCH_NORMS)]
    assert norms
    assert not [module for module in grouped.modules() if isinstance(module, BATCH_NORMS)]
    assert sum(isinstance(module, nn.GroupNorm) for module in grouped.modules()) == len(norms)
    assert activations(grouped) == activations(plain)
    with torch.no_grad():
        assert torch.isfinite(grouped(torch.randn(2, 1, size.height, size.width))).all()


def activations(module: nn.Module) -> int:
    kinds = (nn.ReLU, nn.SiLU, nn.Hardswish, nn.ReLU6, nn.GELU)
    return sum(isinstance(child, kinds) for child in module.modules())


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "regnetx_002"])
def test_an_example_does_not_depend_on_the_others_in_training(name: str) -> None:
    encoder = build_image_encoder(ImageEncoder(name), SIZE).train()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    images = torch.randn(3, 1, 64, 64)
    torch.testing.assert_close(encoder(images)[:1], encoder(images[:1]), rtol=1e-3, atol=1e-4)


def test_a_normalisation_with_its_activation_keeps_it() -> None:
    """timm's BatchNormAct2d is norm and activation in one module."""
    from timm.layers import BatchNormAct2d

    layer = with_group_norm(nn.Sequential(BatchNormAct2d(16, act_layer=nn.ReLU)))
    inputs = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(layer(inputs), torch.relu(nn.GroupNorm(2, 16)(inputs)))


@pytest.mark.parametrize("channels", [1, 7, 8, 24, 36, 50])
def test_groups_divide_any_number_of_channels(channels: int) -> None:
    layer = with_group_norm(nn.Sequential(nn.BatchNorm2d(channels)))[0]
    assert isinstance(layer, nn.GroupNorm)
    assert channels % layer.num_groups == 0
    assert layer(torch.randn(2, channels, 3, 3)).shape == (2, channels, 3, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ImageEncoder("resnet_18"), "model.image.name must be a timm model, got 'resnet_18'. Such as "),
        (ImageEncoder("zzz"), "model.image.name must be a timm model, got 'zzz'. timm.list_models() names them all."),
        (ImageEncoder("resnet18", {"depth": 3}), "model.image must be buildable by timm"),
        (ImageEncoder("test_vit", {"patch_size": 0}), "model.image must be buildable by timm"),
        (ImageEncoder("convnext_atto", {"depths": [1, 1, 1]}), "model.image must be buildable by timm"),
    ],
)
def test_a_model_that_timm_cannot_build_is_refused_in_one_line(config: ImageEncoder, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_image_encoder(config, SIZE)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["convnext_atto", "test_vit"])
def test_scans_too_small_for_the_model_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.image"):
        build_image_encoder(ImageEncoder(name), Images(8, 8))


def test_a_standardised_image_has_mean_zero_and_deviation_one() -> None:
    images = torch.rand(3, 2, 1, 8, 8) * 200 + torch.arange(3.0).view(3, 1, 1, 1, 1) * 50
    found = standardise(images)
    torch.testing.assert_close(found.mean(dim=(-2, -1)), torch.zeros(3, 2, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std(dim=(-2, -1), unbiased=False), torch.ones(3, 2, 1), atol=1e-3, rtol=0)


def test_a_black_image_is_standardised_to_nothing() -> None:
    assert not standardise(torch.full((1, 1, 4, 4), 7.0)).any()


def arguments_of(encoder: Any) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters())


def test_arguments_reach_timm() -> None:
    small = build_image_encoder(ImageEncoder("convnext_atto", {"dims": [4, 4, 4, 4], "depths": [1, 1, 1, 1]}), SIZE)
    assert arguments_of(small) < 5000 < arguments_of(timm.create_model("convnext_atto", num_classes=0, in_chans=1))
