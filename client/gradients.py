"""How do a site's examples become the gradient of a step? The gradient of a batch; with privacy: client/dpsgd.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor, nn

from client.store import Rows
from shared.config import Stage
from shared.inputs import Batch
from shared.objectives.objective import Objective

Take = Callable[[Rows], Batch]


class Gradients(Protocol):
    """What the training loop leaves to whoever knows of privacy: which rows make a step, and their gradient."""

    def draw(self, rows: Rows, seed: int) -> list[Rows]:
        """The rows of each step of a round."""

    def backward(self, objective: Objective, rows: Rows, generator: Generator) -> Tensor | None:
        """Leave the gradient of a step in ``p.grad``; its mean loss, where that may be told."""


class BatchGradients:
    """The gradient of the mean loss of shuffled batches, its norm clipped as the stage asks.

    Args:
        take: makes a batch of some rows.
    """

    def __init__(self, take: Take, stage: Stage, device: torch.device) -> None:
        self._take, self._stage, self._device = take, stage, device

    def draw(self, rows: Rows, seed: int) -> list[Rows]:
        return list(draw_batches(rows, self._stage, np.random.default_rng(seed)))

    def backward(self, objective: Objective, rows: Rows, generator: Generator) -> Tensor | None:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._stage.precision == "bfloat16"):
            loss: Tensor = objective(self._take(rows).to(self._device), generator)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._stage.clip_norm:
            nn.utils.clip_grad_norm_(objective.parameters(), self._stage.clip_norm)
        return loss.detach()


def draw_batches(rows: Rows, stage: Stage, random: np.random.Generator) -> Iterator[Rows]:
    """Rows of each step of a round: ``epochs`` shuffled passes, cut into equal batches, a remainder dropped.

    A site with fewer rows than a batch has one batch of all of them a pass.
    """
    size = min(stage.batch_size, len(rows))
    steps = max(round(stage.epochs * len(rows) / size), 1)
    pool = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        if len(pool) < size:
            pool = random.permutation(rows)
        yield pool[:size]
        pool = pool[size:]
