"""How does a site train? The one loop: zero_grad, objective, backward, step. What varies comes in as a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, nn

from client.optimizers import Optimizer, rate_factor
from client.store import Rows
from shared.config import Stage
from shared.inputs import Batch
from shared.objectives.objective import Objective


@dataclass(frozen=True)
class Trained:
    """What one round of training did: examples of the site, steps, and the mean loss of the steps."""

    examples: int
    steps: int
    loss: float


def train(
    objective: Objective,
    rows: Rows,
    take: Callable[[Rows], Batch],
    stage: Stage,
    optimizer: Optimizer,
    seed: int,
    round: int,
    device: torch.device,
) -> Trained:
    """Train an objective in place for one round.

    Args:
        rows: the site's training examples.
        take: makes a batch of some rows.
        seed: of everything random in this round: order, augmentation, masking, dropout.
        round: 1 to ``stage.rounds``, which places the round on the learning rate schedule.
    """
    generator = Generator().manual_seed(seed)
    batches = list(draw_batches(rows, stage, np.random.default_rng(seed)))
    losses = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout takes no generator
        objective.train()
        for step, batch_rows in enumerate(batches):
            optimizer.set_rate(rate_factor(stage, (round - 1 + step / len(batches)) / stage.rounds))
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=stage.precision == "bfloat16"):
                loss = objective(take(batch_rows).to(device), generator)
            loss.backward()
            if stage.clip_norm:
                nn.utils.clip_grad_norm_(objective.parameters(), stage.clip_norm)
            optimizer.step()
            losses.append(loss.detach())
    return Trained(len(rows), len(batches), float(torch.stack(losses).mean()))


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
