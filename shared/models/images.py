"""How does a scan become an embedding? A timm model with one input channel, built by name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from shared.config import ImageEncoder, Images
from shared.errors import ConfigError
from shared.models.torchvision_shim import ensure_torchvision


def build_image_encoder(config: ImageEncoder, images: Images) -> nn.Module:
    """A module from (N, 1, H, W) standardised images to (N, ``num_features``) embeddings.

    Raises:
        ConfigError: timm knows no such model, or the model refuses its arguments or the image size.
    """
    ensure_torchvision()
    import timm

    if not timm.is_model(config.name):
        close = timm.list_models(f"*{config.name.split('_')[0]}*")[:3]
        remedy = f"Such as {', '.join(close)}." if close else "timm.list_models() names them all."
        raise ConfigError("model.image.name", "must be a timm model", value=config.name, remedy=remedy)
    arguments: dict[str, Any] = {"in_chans": 1, "num_classes": 0, "pretrained": False, **config.arguments}
    try:
        try:
            encoder = timm.create_model(config.name, img_size=(images.height, images.width), **arguments)
        except TypeError:  # convolutional models take any size and no img_size
            encoder = timm.create_model(config.name, **arguments)
        encoder = with_group_norm(encoder) if config.group_norm else encoder
        with torch.no_grad():  # a size that the model cannot take shows only here
            encoder.eval()(torch.zeros(1, 1, images.height, images.width))
    except Exception as error:  # timm and torch check few arguments, and trip over the others in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        rule = f"must be buildable by timm for images of {images.height} x {images.width}"
        raise ConfigError("model.image", rule, value=reason) from None
    return encoder.train()


def with_group_norm(module: nn.Module) -> nn.Module:
    """The same module with GroupNorm for BatchNorm, whose statistics neither average over sites nor stay private.

    Groups of 8 channels or so keep the scale of a layer's channels comparable (arXiv 1803.08494, section 4.1).
    """
    from timm.layers.norm_act import BatchNormAct2d

    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            groups = math.gcd(max(child.num_features // 8, 1), child.num_features)
            norm: nn.Module = nn.GroupNorm(groups, child.num_features, eps=child.eps)
            if isinstance(child, BatchNormAct2d):  # timm folds dropout and activation into its norm
                norm = nn.Sequential(norm, child.drop, child.act)
            setattr(module, name, norm)
        else:
            with_group_norm(child)
    return module


def embedding_width(encoder: nn.Module) -> int:
    """The width of the embeddings of an encoder of timm."""
    width = getattr(encoder, "head_hidden_size", None) or encoder.num_features
    assert isinstance(width, int)
    return width


def encode(encoder: nn.Module, images: Tensor) -> Tensor:
    """Embeddings (N, D) of images (N, 1, H, W), which are standardised first."""
    embeddings: Tensor = encoder(standardise(images.float()))
    return embeddings


def standardise(images: Tensor) -> Tensor:
    """Each image with mean 0 and deviation 1, so that a device's gain and offset do not matter.

    Args:
        images: float of shape (..., H, W).
    """
    centred = images - images.mean(dim=(-2, -1), keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(centred, dim=(-2, -1), keepdim=True)  # much faster than std
    deviation = norm / math.sqrt(images.shape[-2] * images.shape[-1])
    return centred / (deviation + 1e-3)
