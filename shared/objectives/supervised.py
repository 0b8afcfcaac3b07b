"""Supervised learning of the labelled cases: binary cross entropy, aware of class imbalance."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn import functional

from shared.config import Augmentation, Study
from shared.inputs import Batch, Cases
from shared.models.multimodal import MultimodalModel
from shared.objectives.augmentation import augment
from shared.objectives.objective import Objective
from shared.statistics import Statistics


class SupervisedObjective(Objective):
    """Weighted BCE. Weights follow the federation's prevalence, so that every site minimises the same loss."""

    def __init__(self, study: Study, statistics: Statistics) -> None:
        super().__init__()
        self.model = MultimodalModel(study, statistics)
        self.augmentation: Augmentation = study.finetune.augmentation
        self.positive_weight, self.negative_weight = class_weights(statistics.prevalence, study.finetune.class_balance)

    def prepare(self, batch: Batch, generator: Generator) -> Cases:
        """Cases with their scans changed at random."""
        assert isinstance(batch, Cases)
        images = {}
        for name, scans in batch.images.items():
            if batch.are_embedded(name):
                images[name] = scans
                continue
            shown = batch.shown[name]
            changed = scans.new_zeros(scans.shape, dtype=torch.float32)
            if bool(shown.any()):
                changed[shown] = augment(scans[shown], self.augmentation, generator)
            images[name] = changed
        return replace(batch, images=images)

    def loss(self, prepared: Cases) -> Tensor:
        return self.weighted_bce(self.model(prepared), prepared.labels)

    def weighted_bce(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean weighted BCE of logits (B,) and labels (B,)."""
        weights = torch.where(labels > 0.5, self.positive_weight, self.negative_weight)
        return functional.binary_cross_entropy_with_logits(logits.float(), labels, weight=weights)


def class_weights(prevalence: float, balance: float) -> tuple[float, float]:
    """Weights of positive and negative cases, 1 on average: (0.5 / fraction) ** balance, rescaled."""
    positive, negative = (0.5 / prevalence) ** balance, (0.5 / (1.0 - prevalence)) ** balance
    mean = prevalence * positive + (1.0 - prevalence) * negative
    return positive / mean, negative / mean
