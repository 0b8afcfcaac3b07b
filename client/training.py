"""How does a site train? The one loop: zero_grad, backward, step. What varies comes in as a value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator

from client.gradients import Gradients
from client.optimizers import Optimizer, rate_factor
from client.store import Rows
from shared.config import Stage
from shared.objectives.objective import Objective


@dataclass(frozen=True)
class Trained:
    """What one round of training did: examples of the site, steps, and the mean loss of the steps where it is told."""

    examples: int
    steps: int
    loss: float | None


def train(
    objective: Objective,
    rows: Rows,
    gradients: Gradients,
    stage: Stage,
    optimizer: Optimizer,
    seed: int,
    round: int,
    device: torch.device,
) -> Trained:
    """Train an objective in place for one round.

    Args:
        rows: the site's training examples.
        gradients: draws the rows of each step and makes its gradient.
        seed: of everything random in this round: order, augmentation, masking, dropout.
        round: 1 to ``stage.rounds``, which places the round on the learning rate schedule.
    """
    generator = Generator().manual_seed(seed)
    batches = gradients.draw(rows, seed)
    losses = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout takes no generator
        objective.train()
        for step, batch_rows in enumerate(batches):
            optimizer.set_rate(rate_factor(stage, (round - 1 + step / len(batches)) / stage.rounds))
            optimizer.zero_grad()
            loss = gradients.backward(objective, batch_rows, generator)
            optimizer.step()
            if loss is not None:
                losses.append(loss)
    return Trained(len(rows), len(batches), float(torch.stack(losses).mean()) if losses else None)
