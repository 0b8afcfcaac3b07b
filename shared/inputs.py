"""What does the model take in? Batches of cases and of image pairs, as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor


class Alike(Protocol):
    """Examples that have the same inputs, so that each can stand alone under ``torch.func.vmap``."""

    def tensors(self) -> dict[str, Tensor]:
        """Every input, examples first."""

    def of_one(self, tensors: dict[str, Tensor]) -> Self:
        """One example, of the tensors without their first dimension; what is there does not depend on them."""


def _groups(has: Tensor) -> Iterator[Tensor]:
    """Places of the equal rows of (B, C), group by group."""
    kinds, kind = torch.unique(has, dim=0, return_inverse=True)
    return ((kind == number).nonzero().squeeze(1) for number in range(len(kinds)))


@dataclass(frozen=True)
class Cases:
    """B cases: a patient at a prediction time, with up to K scans of each modality.

    Attributes:
        images: uint8 or float of shape (B, K, 1, H, W), keyed ``oct`` and ``ir``; a modality may be absent. Or the
            scans' embeddings, float of shape (B, K, D), where they were encoded before.
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

    def are_embedded(self, modality: str) -> bool:
        """Are a modality's scans there as embeddings?"""
        return self.images[modality].ndim == 3

    def to(self, device: torch.device) -> Cases:
        """The same cases on a device."""
        return Cases(
            {name: tensor.to(device) for name, tensor in self.images.items()},
            {name: tensor.to(device) for name, tensor in self.shown.items()},
            None if self.clinical is None else self.clinical.to(device),
            None if self.recorded is None else self.recorded.to(device),
            self.labels.to(device),
        )

    def alike(self) -> Iterator[tuple[Tensor, Cases]]:
        """Groups of cases with as many scans of each modality: their places (n,), and the cases with all scans shown.

        A modality that a group has no scan of is left out of it.
        """
        recorded = torch.zeros_like(self.labels) if self.recorded is None else self.recorded
        counts = [shown.sum(dim=1) for shown in self.shown.values()]
        for at in _groups(torch.stack([*counts, recorded.long()], dim=1)):
            images = {
                name: scans[at][self.shown[name][at]].view(len(at), -1, *scans.shape[2:])
                for name, scans in self.images.items()
                if bool(self.shown[name][at[0]].any())
            }
            shown = {name: torch.ones(scans.shape[:2], dtype=torch.bool) for name, scans in images.items()}
            clinical, recorded_too = (None if part is None else part[at] for part in (self.clinical, self.recorded))
            yield at, Cases(images, shown, clinical, recorded_too, self.labels[at])

    def tensors(self) -> dict[str, Tensor]:
        """Scans, records and labels of cases that are alike."""
        record = {} if self.clinical is None else {"clinical": self.clinical}
        return {**self.images, **record, "labels": self.labels}

    def of_one(self, tensors: dict[str, Tensor]) -> Cases:
        """A case of its own, with what the first of these cases has."""
        shown = {name: there[:1] for name, there in self.shown.items()}
        clinical = None if self.clinical is None else tensors["clinical"][None]
        recorded = None if self.recorded is None else self.recorded[:1]
        return Cases({name: tensors[name][None] for name in shown}, shown, clinical, recorded, tensors["labels"][None])

    def blank(self) -> Cases:
        """The first of these cases with everything there and nothing to see: shapes without data."""
        images = {name: torch.zeros_like(scans[:1]) for name, scans in self.images.items()}
        shown = {name: torch.ones_like(there[:1]) for name, there in self.shown.items()}
        clinical = None if self.clinical is None else torch.zeros_like(self.clinical[:1])
        recorded = None if self.recorded is None else torch.ones_like(self.recorded[:1])
        return Cases(images, shown, clinical, recorded, torch.zeros_like(self.labels[:1]))


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

    def alike(self) -> Iterator[tuple[Tensor, Scans]]:
        """Groups of eyes with the same modalities: their places (n,), and the eyes. ``others`` are left out."""
        for at in _groups(torch.stack(list(self.shown.values()), dim=1)):
            images = {name: scans[at] for name, scans in self.images.items() if bool(self.shown[name][at[0]])}
            yield at, Scans(images, {name: self.shown[name][at] for name in images}, {})

    def blank(self) -> Scans:
        """The first of these eyes with everything there and nothing to see: shapes without data."""
        images = {name: torch.zeros_like(scans[:1]) for name, scans in self.images.items()}
        return Scans(images, {name: torch.ones_like(there[:1]) for name, there in self.shown.items()}, images)


Batch = Cases | Scans
