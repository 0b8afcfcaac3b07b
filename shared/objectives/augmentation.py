"""How are training images changed at random? Randomness is drawn first, then applied to the whole batch."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from shared.config import Augmentation
from shared.models.images import standardise


def augment(images: Tensor, config: Augmentation, generator: Generator) -> Tensor:
    """Standardised and randomly changed images, each by its own draw.

    Args:
        images: uint8 or float of shape (N, 1, H, W).
        generator: on the CPU, so that a draw does not depend on the device.

    Returns:
        float32 of shape (N, 1, H, W) on the device of ``images``.
    """
    images = images.float()
    if config.flip:
        mirrored = (_draw(images, generator) < config.flip).to(images.device)
        images = torch.where(mirrored, images.flip(-1), images)
    if config.crop_area or config.rotate_degrees:
        grid = functional.affine_grid(
            _draw_affine(images, config, generator).to(images.device), list(images.shape), align_corners=False
        )
        images = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if config.blur:
        images = _blur(images, _draw(images, generator).to(images.device) < config.blur)
    if config.gamma:
        exponent = ((2 * _draw(images, generator) - 1) * config.gamma).exp().to(images.device)
        images = (images.clamp(min=0.0) / 255.0) ** exponent
    images = standardise(images)
    if config.noise:
        deviation = (_draw(images, generator) * config.noise).to(images.device)
        images = images + deviation * torch.randn(images.shape, generator=generator).to(images.device)
    return images


def _draw(images: Tensor, generator: Generator) -> Tensor:
    """One uniform number an image, (N, 1, 1, 1)."""
    return torch.rand(len(images), 1, 1, 1, generator=generator)


def _draw_affine(images: Tensor, config: Augmentation, generator: Generator) -> Tensor:
    """Crop and rotation as matrices (N, 2, 3) from output to input coordinates in [-1, 1]."""
    count, aspect = len(images), images.shape[-1] / images.shape[-2]
    draws = torch.rand(count, 4, generator=generator)
    scale = (1.0 - draws[:, 0] * config.crop_area).sqrt()
    angle = (2 * draws[:, 1] - 1) * math.radians(config.rotate_degrees)
    shift = (2 * draws[:, 2:4] - 1) * (1.0 - scale)[:, None]
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack([cos, -sin / aspect, shift[:, 0], sin * aspect, cos, shift[:, 1]], dim=1)
    return rows.view(count, 2, 3)


def _blur(images: Tensor, chosen: Tensor) -> Tensor:
    """A binomial 3 x 3 blur of the chosen images."""
    kernel = images.new_tensor([1.0, 2.0, 1.0]) / 4.0
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    blurred = functional.conv2d(padded, (kernel[:, None] * kernel)[None, None])
    return torch.where(chosen, blurred, images)
