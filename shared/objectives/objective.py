"""What does training minimise? An objective is a module that holds what it trains and returns the loss of a batch."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Generator, Tensor, nn

from shared.inputs import Batch


class Objective(nn.Module):
    """A loss with the weights it needs: image encoders under ``encoders``, and its own head.

    Attributes:
        mixes_examples: whether one patient's loss depends on the other patients of the batch; such an objective
            has no bounded influence of a patient and cannot be trained under differential privacy.
    """

    mixes_examples: ClassVar[bool] = False

    def forward(self, batch: Batch, generator: Generator) -> Tensor:
        """The mean loss of a batch, a scalar. All randomness of the inputs comes from ``generator``."""
        return self.loss(self.prepare(batch, generator))

    def prepare(self, batch: Batch, generator: Generator) -> Any:
        """All that is random about the inputs, drawn; of examples that are alike, something ``shared.inputs.Alike``."""
        raise NotImplementedError

    def loss(self, prepared: Any) -> Tensor:
        """The mean loss of what was prepared, a scalar; of one example, it runs under ``torch.func.vmap``."""
        raise NotImplementedError
