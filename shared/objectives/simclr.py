"""SimCLR: pull two views of one scan together, push the batch's other scans away (Chen et al., arXiv 2002.05709).

The two views may come from two scans of one patient, the other eye or another visit (Azizi et al., arXiv 2101.05224),
and the OCT and the infrared scan of one eye may be a positive pair besides.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from shared.config import Augmentation, SimCLR, Study
from shared.inputs import Batch, Scans
from shared.models.images import embedding_width
from shared.models.multimodal import build_encoders
from shared.objectives.augmentation import augment
from shared.objectives.objective import Objective


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy (equation 1 of the paper), averaged over the 2B anchors.

    Args:
        first, second: projections of shape (B, D); row i of both is a positive pair.
    """
    batch = len(first)
    unit = functional.normalize(torch.cat([first, second]).float(), dim=1)
    similarity = unit @ unit.T / temperature
    similarity = similarity.masked_fill(torch.eye(2 * batch, dtype=torch.bool, device=unit.device), float("-inf"))
    partner = torch.arange(2 * batch, device=unit.device).roll(batch)
    return functional.cross_entropy(similarity, partner)


class SimCLRObjective(Objective):
    """NT-Xent for each image encoder, averaged, with that between the modalities of an eye where it is asked for."""

    mixes_examples: ClassVar[bool] = True

    def __init__(self, study: Study, config: SimCLR, augmentation: Augmentation) -> None:
        super().__init__()
        self.config, self.augmentation = config, augmentation
        self.encoders = build_encoders(study)
        self.projections = nn.ModuleDict(
            {
                name: _projection(embedding_width(encoder), config.projection_width)
                for name, encoder in self.encoders.items()
            }
        )

    def forward(self, batch: Batch, generator: Generator) -> Tensor:
        assert isinstance(batch, Scans)
        views = {
            name: self._views(name, batch, generator)
            for name in self.encoders
            if name in batch.images and int(batch.shown[name].sum()) > 1  # a scan alone has nothing to be told from
        }
        losses = [nt_xent(first, second, self.config.temperature) for first, second in views.values()]
        if self.config.between_modalities and len(views) == 2:
            both = batch.shown["oct"] & batch.shown["ir"]
            if int(both.sum()) > 1:
                oct_, ir = (views[name][0][both[batch.shown[name]]] for name in ("oct", "ir"))
                losses.append(nt_xent(oct_, ir, self.config.temperature))
        if not losses:  # a loss of zero that reaches every parameter
            return torch.stack([p.sum() * 0.0 for p in self.parameters()]).sum()
        return torch.stack(losses).mean()

    def _views(self, name: str, batch: Scans, generator: Generator) -> tuple[Tensor, Tensor]:
        """Projections of two views of every scan that is there, (N, D) each."""
        shown = batch.shown[name]
        sources = (batch.images, batch.others if self.config.positives == "patient" else batch.images)
        both = torch.cat([augment(images[name][shown], self.augmentation, generator) for images in sources])
        first, second = self.projections[name](self.encoders[name](both)).chunk(2)
        return first, second


def _projection(width: int, output: int) -> nn.Module:
    """The paper's two-layer head, without BatchNorm."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, output))
