"""MAE: hide most patches of a scan and predict them from the rest (He et al., arXiv 2111.06377).

A vision transformer encodes the visible patches alone, as in the paper. A convolutional encoder cannot leave patches
out: it sees the scan with hidden patches at the mean, and its feature map is decoded (as in SimMIM, arXiv 2111.09886).
Either way a patient's loss depends on that patient alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from shared.config import MAE, Augmentation, Study
from shared.errors import ConfigError
from shared.inputs import Batch, Scans
from shared.models.images import embedding_width
from shared.models.multimodal import build_encoders
from shared.objectives.augmentation import augment
from shared.objectives.objective import Objective


def patchify(images: Tensor, patch: int) -> Tensor:
    """(N, 1, H, W) to (N, H/patch * W/patch, patch * patch), rows of patches first."""
    return functional.unfold(images, patch, stride=patch).transpose(1, 2)


def draw_hidden(count: int, patches: int, ratio: float, generator: Generator) -> Tensor:
    """Which patches are hidden: bool (count, patches), the same number in every row, at least one, never all."""
    hidden = min(max(round(patches * ratio), 1), patches - 1)
    rank = torch.rand(count, patches, generator=generator).argsort(dim=1).argsort(dim=1)
    return rank < hidden


class Masking(NamedTuple):
    """Positions of the patches of N scans, in order: ``visible`` (N, V) and ``hidden`` (N, H)."""

    visible: Tensor
    hidden: Tensor

    @staticmethod
    def of(hidden: Tensor) -> Masking:
        """The positions of a mask (N, L) that hides as many patches in every row."""
        visible, covered = (mask.nonzero()[:, 1].view(len(mask), -1) for mask in (~hidden, hidden))
        return Masking(visible, covered)

    @property
    def mask(self) -> Tensor:
        """Which patches are hidden, bool (N, L)."""
        places = torch.arange(self.visible.shape[1] + self.hidden.shape[1], device=self.hidden.device)
        return (self.hidden[:, :, None] == places).any(dim=1)


def _pick(tokens: Tensor, places: Tensor) -> Tensor:
    """(N, L, D) at positions (N, K): (N, K, D)."""
    return tokens.take_along_dim(places[:, :, None], dim=1)


def reconstruction_loss(predicted: Tensor, patches: Tensor, hidden: Tensor, normalise: bool) -> Tensor:
    """Mean squared error over the hidden patches (section 3 of the paper), standardised patch by patch or not.

    Args:
        predicted, patches: (N, L, patch * patch).
        hidden: positions (N, H).
    """
    if normalise:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        patches = (patches - mean) / (variance + 1e-6).sqrt()
    return _pick(predicted.float() - patches, hidden).pow(2).mean()


@dataclass(frozen=True)
class MaskedScans:
    """Augmented scans of each modality (N, 1, H, W) that there is, and which of their patches are hidden."""

    images: dict[str, Tensor]
    masking: dict[str, Masking]

    def tensors(self) -> dict[str, Tensor]:
        """Scans and positions of eyes that are alike."""
        hidden = {f"hidden {name}": masking.hidden for name, masking in self.masking.items()}
        return self.images | hidden | {f"visible {name}": masking.visible for name, masking in self.masking.items()}

    def of_one(self, tensors: dict[str, Tensor]) -> MaskedScans:
        """An eye of its own."""
        images = {name: tensors[name][None] for name in self.images}
        places = {name: Masking(tensors[f"visible {name}"][None], tensors[f"hidden {name}"][None]) for name in images}
        return MaskedScans(images, places)


class MAEObjective(Objective):
    """Reconstruction of each image encoder's scans, averaged over the encoders."""

    def __init__(self, study: Study, config: MAE, augmentation: Augmentation) -> None:
        super().__init__()
        self.config, self.augmentation = config, augmentation
        self.encoders = build_encoders(study)
        grid = (study.images.height // config.patch, study.images.width // config.patch)
        self.decoders = nn.ModuleDict(
            {name: _decoder(encoder, config, grid) for name, encoder in self.encoders.items()}
        )

    def prepare(self, batch: Batch, generator: Generator) -> MaskedScans:
        assert isinstance(batch, Scans)
        images, masking = {}, {}
        for name in self.encoders:
            if name in batch.images and bool(batch.shown[name].any()):
                images[name] = augment(batch.images[name][batch.shown[name]], self.augmentation, generator)
                patches = images[name][0].numel() // self.config.patch**2
                drawn = draw_hidden(len(images[name]), patches, self.config.mask_ratio, generator)
                masking[name] = Masking.of(drawn.to(images[name].device))
        return MaskedScans(images, masking)

    def loss(self, prepared: MaskedScans) -> Tensor:
        losses = [self._loss(name, images, prepared.masking[name]) for name, images in prepared.images.items()]
        if not losses:
            return torch.stack([p.sum() * 0.0 for p in self.parameters()]).sum()
        return torch.stack(losses).mean()

    def _loss(self, name: str, images: Tensor, masking: Masking) -> Tensor:
        patches = patchify(images, self.config.patch)
        predicted = self.decoders[name](self.encoders[name], images, masking)
        return reconstruction_loss(predicted, patches, masking.hidden, self.config.normalise_patches)


def _decoder(encoder: nn.Module, config: MAE, grid: tuple[int, int]) -> nn.Module:
    if all(hasattr(encoder, part) for part in ("patch_embed", "pos_embed", "blocks", "norm")):
        return TokenDecoder(encoder, config, grid)
    return MapDecoder(encoder, config, grid)


class TokenDecoder(nn.Module):
    """Transformer decoder over the visible tokens of a timm VisionTransformer and mask tokens for the hidden ones."""

    def __init__(self, encoder: nn.Module, config: MAE, grid: tuple[int, int]) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        own = tuple(encoder.patch_embed.patch_size)  # type: ignore[union-attr, arg-type]
        if own != (config.patch, config.patch):
            remedy = f"Set objective.patch={own[0]}."
            raise ConfigError("objective.patch", "must be the patch of the encoder", value=config.patch, remedy=remedy)
        width = config.decoder_width
        heads = max(width // 32, 1)
        self.enter = nn.Linear(embedding_width(encoder), width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(config.decoder_depth)))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.patch**2))

    def forward(self, encoder: nn.Module, images: Tensor, masking: Masking) -> Tensor:
        """Predicted patches (N, L, patch * patch) for every position."""
        visible = self.enter(_encode_visible(encoder, images, masking.visible))
        tokens = self.mask_token.to(visible.dtype).expand(len(images), len(self.position), -1)
        tokens = tokens.scatter(1, masking.visible[:, :, None].expand_as(visible), visible)
        predicted: Tensor = self.leave(self.blocks(tokens + self.position))
        return predicted


def _encode_visible(encoder: nn.Module, images: Tensor, visible: Tensor) -> Tensor:
    """Encoded tokens at positions (N, V), without class and register tokens, from public parts of timm's ViT."""
    tokens = encoder.patch_embed(images)  # type: ignore[operator]
    if tokens.ndim == 4:  # models that accept any size keep the grid, (N, h, w, D)
        tokens = tokens.flatten(1, 2)
    count = len(tokens)
    prefix, position = encoder.num_prefix_tokens, encoder.pos_embed
    assert isinstance(prefix, int)
    assert isinstance(position, Tensor)
    has_prefix_position = position.shape[1] == tokens.shape[1] + prefix
    patch_position = position[:, prefix:] if has_prefix_position else position
    kept = _pick(tokens + patch_position, visible)
    extra = [token for token in (encoder.cls_token, getattr(encoder, "reg_token", None)) if isinstance(token, Tensor)]
    if extra:
        first = torch.cat([token.expand(count, -1, -1) for token in extra], dim=1)
        kept = torch.cat([first + position[:, :prefix] if has_prefix_position else first, kept], dim=1)
    encoded: Tensor = encoder.norm(encoder.blocks(encoder.norm_pre(kept)))  # type: ignore[operator]
    return encoded[:, prefix:]


class MapDecoder(nn.Module):
    """Decodes the feature map of a convolutional encoder, resized to the grid of patches."""

    def __init__(self, encoder: nn.Module, config: MAE, grid: tuple[int, int]) -> None:
        super().__init__()
        width = config.decoder_width
        self.grid, self.patch = grid, config.patch
        layers: list[nn.Module] = [nn.Conv2d(embedding_width(encoder), width, 1)]
        for _ in range(config.decoder_depth):
            layers += [nn.GELU(), nn.Conv2d(width, width, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.GELU(), nn.Conv2d(width, config.patch**2, 1))

    def forward(self, encoder: nn.Module, images: Tensor, masking: Masking) -> Tensor:
        """Predicted patches (N, L, patch * patch) for every position."""
        mask = masking.mask.view(len(images), 1, *self.grid).repeat_interleave(self.patch, 2)
        mask = mask.repeat_interleave(self.patch, 3)
        features = encoder.forward_features(images.masked_fill(mask, 0.0))  # type: ignore[operator]
        resized = functional.interpolate(features, size=self.grid, mode="bilinear", align_corners=False)
        predicted: Tensor = self.layers(resized).flatten(2).transpose(1, 2)
        return predicted
