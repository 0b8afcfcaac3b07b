"""How does a clinical record become an embedding?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared.config import ClinicalEncoder, Features
from shared.statistics import Statistics


class RecordEncoder(nn.Module):
    """Standardises values, adds missing masks and ages of measurement, and passes them through a perceptron.

    Args:
        features: the study's feature list, with Fn numeric features (age among them) and Fc codes.
        statistics: mean and deviation of the numeric features.

    Shape:
        (B, 2 Fn + Fc) as in ``shared.inputs.Cases.clinical`` to (B, ``num_features``).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: ClinicalEncoder, features: Features, statistics: Statistics) -> None:
        super().__init__()
        self.numeric = len(features.numeric) + int(features.age)
        # Constants of the study rather than weights: they travel beside the weights, not among them.
        self.register_buffer("mean", torch.tensor(statistics.mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(statistics.deviation), persistent=False)
        width = 3 * self.numeric + len(features.codes)
        layers: list[nn.Module] = []
        for hidden in config.hidden:
            layers += [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(config.dropout)]
            width = hidden
        self.layers = nn.Sequential(*layers)
        self.num_features = width

    def forward(self, clinical: Tensor) -> Tensor:
        values, ages, codes = torch.split(
            clinical, [self.numeric, self.numeric, clinical.shape[1] - 2 * self.numeric], dim=1
        )
        missing = values.isnan()
        # Four deviations hold all but faulty entries; beyond, one typing error would own the batch.
        scaled = ((values - self.mean) / self.deviation).clamp(-4.0, 4.0)
        parts = [scaled.nan_to_num(0.0), missing.float(), ages.nan_to_num(0.0).clamp(min=0.0).log1p(), codes]
        embedding: Tensor = self.layers(torch.cat(parts, dim=1))
        return embedding
