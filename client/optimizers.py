"""How do gradients become steps? The stage's optimizer, its learning rate, and wrappers that change the gradient."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from shared.config import Finetune, Stage, Study
from shared.models.dynamo_shim import postpone_dynamo


class Optimizer(Protocol):
    """What the training loop needs of an optimizer or of a wrapper around one."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self) -> None:
        """Change the weights by the gradients."""

    def set_rate(self, factor: float) -> None:
        """Learning rate relative to its peak."""


class StageOptimizer:
    """AdamW or SGD as the stage asks, new in every round: a site keeps no state between rounds."""

    def __init__(self, module: nn.Module, study: Study, stage: Stage) -> None:
        postpone_dynamo()
        encoder_lr = stage.lr * encoder_rate(study, stage)
        encoders: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in module.named_parameters():
            (encoders if "encoders." in name else rest).append(parameter)
        for parameter in encoders:
            parameter.requires_grad_(encoder_lr > 0.0)
        groups = [{"params": rest, "lr": stage.lr}]
        if encoders and encoder_lr > 0.0:
            groups.append({"params": encoders, "lr": encoder_lr})
        self._inner: torch.optim.Optimizer
        if stage.optimizer == "sgd":
            self._inner = torch.optim.SGD(
                groups, lr=stage.lr, momentum=0.9, weight_decay=stage.weight_decay, fused=True
            )
        else:  # fused: of a small model, tensor after tensor would be a tenth of a step
            self._inner = torch.optim.AdamW(groups, lr=stage.lr, weight_decay=stage.weight_decay, fused=True)
        self._peaks = [group["lr"] for group in self._inner.param_groups]

    def zero_grad(self) -> None:
        self._inner.zero_grad(set_to_none=True)

    def step(self) -> None:
        self._inner.step()

    def set_rate(self, factor: float) -> None:
        for group, peak in zip(self._inner.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor


class Proximal:
    """FedProx (arXiv 1812.06127): pulls weights to where the round began.

    The pull is added to the gradient rather than to the loss, where clipping by patient would silently drop it.
    """

    def __init__(self, inner: Optimizer, module: nn.Module, mu: float) -> None:
        self._inner, self._mu = inner, mu
        self._anchors: list[tuple[nn.Parameter, Tensor]] = [(p, p.detach().clone()) for p in module.parameters()]

    def zero_grad(self) -> None:
        self._inner.zero_grad()

    def step(self) -> None:
        for parameter, anchor in self._anchors:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=self._mu)
        self._inner.step()

    def set_rate(self, factor: float) -> None:
        self._inner.set_rate(factor)


def build_optimizer(module: nn.Module, study: Study, stage: Stage) -> Optimizer:
    """The optimizer of a stage, wrapped as the study's strategy asks."""
    optimizer = StageOptimizer(module, study, stage)
    mu = study.strategy.proximal_mu
    return Proximal(optimizer, module, mu) if mu else optimizer


def rate_factor(stage: Stage, done: float) -> float:
    """Learning rate relative to its peak.

    Args:
        done: fraction of all rounds of the stage that is done, in [0, 1].
    """
    if done < stage.warmup:
        return max(done / stage.warmup, 0.05)
    if stage.schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (done - stage.warmup) / max(1.0 - stage.warmup, 1e-9)))


def encoder_rate(study: Study, stage: Stage) -> float:
    """The encoders' learning rate relative to the others': ``encoder_lr`` where they come pretrained to fine-tuning."""
    starts_pretrained = isinstance(stage, Finetune) and bool(study.pretrain.rounds or study.model.image.weights)
    return stage.encoder_lr if starts_pretrained else 1.0
