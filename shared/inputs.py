"""What does the model take in? Batches of cases and of image pairs, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cases:
    """B cases: a patient at a prediction time, with up to K scans of each modality.

    Attributes:
        images: uint8 or float of shape (B, K, 1, H, W), keyed ``oct`` and ``ir``; a modality may be absent.
        shown: bool of shape (B, K), keyed alike: which of the scans are there.
        clinical: float of shape (B, F): numeric values (NaN when missing), their ages in years (NaN when missing),
            then codes as 0 or 1; None without the clinical branch.
        recorded: bool of shape (B,): whether a case has any clinical record; None with ``clinical``.
        labels: float of shape (B,), 0 or 1.
    """

    images: dict[str, Tensor]
    shown: dict[str, Tensor]
    clinical: Tensor | None
    recorded: Tensor | None
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Cases:
        """The same cases on a device."""
        return Cases(
            {name: tensor.to(device) for name, tensor in self.images.items()},
            {name: tensor.to(device) for name, tensor in self.shown.items()},
            None if self.clinical is None else self.clinical.to(device),
            None if self.recorded is None else self.recorded.to(device),
            self.labels.to(device),
        )


@dataclass(frozen=True)
class Scans:
    """B eyes at a visit, unlabelled: an OCT, an infrared scan, or both of one eye.

    Attributes:
        images: uint8 of shape (B, 1, H, W), keyed ``oct`` and ``ir``.
        shown: bool of shape (B,), keyed alike: where the scan is there.
        others: as ``images``: another scan of the same patient and modality, the same one where there is no other.
    """

    images: dict[str, Tensor]
    shown: dict[str, Tensor]
    others: dict[str, Tensor]

    def __len__(self) -> int:
        return max((len(tensor) for tensor in self.shown.values()), default=0)

    def to(self, device: torch.device) -> Scans:
        """The same scans on a device."""
        return Scans(
            {name: tensor.to(device) for name, tensor in self.images.items()},
            {name: tensor.to(device) for name, tensor in self.shown.items()},
            {name: tensor.to(device) for name, tensor in self.others.items()},
        )


Batch = Cases | Scans
