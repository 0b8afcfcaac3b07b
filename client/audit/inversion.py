"""Which inputs fit a gradient? Reconstruction of a batch from what one step on it would send."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

Gradient = Sequence[Tensor]

_RATE = 0.1
_FALLS = (0.375, 0.625, 0.875)  # of the steps, after which the rate is a tenth, as in the paper


def invert(
    gradient_of: Callable[[Tensor], Gradient],
    sent: Gradient,
    shape: Sequence[int],
    steps: int,
    smoothness: float,
    generator: Generator,
) -> Tensor:
    """Images whose gradient points where the one that was sent points (Geiping et al. 2020, arXiv 2003.14053, eq. 4).

    Adam on the signs of the gradient; the distance is one minus the cosine, plus total variation.

    Args:
        gradient_of: images of ``shape`` to the gradient that they would give, differentiable.
        sent: the gradient to match.
        shape: (..., H, W).
        smoothness: weight of the total variation.

    Returns:
        The best images of all steps, at an unknown gain and offset where the model standardises.
    """
    images = torch.randn(*shape, generator=generator).to(sent[0].device).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=_RATE)
    falls = [max(round(part * steps), 1) for part in _FALLS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, gamma=0.1)
    best, lowest = images.detach().clone(), float("inf")
    for _ in range(steps):
        distance = one_minus_cosine(gradient_of(images), sent) + smoothness * total_variation(images)
        if distance.item() < lowest:
            best, lowest = images.detach().clone(), distance.item()
        (images.grad,) = (slope.sign() for slope in torch.autograd.grad(distance, [images]))
        optimizer.step()
        schedule.step()
    return best


def one_minus_cosine(found: Gradient, sent: Gradient) -> Tensor:
    """0 where two gradients point the same way, 2 where they point opposite ways."""
    product = torch.stack([(a * b).sum() for a, b in zip(found, sent, strict=True)]).sum()
    norms = [torch.stack([a.square().sum() for a in each]).sum().sqrt() for each in (found, sent)]
    return 1.0 - product / (norms[0] * norms[1]).clamp(min=1e-12)


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, both ways; images (..., H, W)."""
    return images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()


def input_of_linear(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """The input (I,) x of a linear layer that one example passed, exactly: dL/dW = dL/db xᵀ (arXiv 2003.14053, 3.1).

    Args:
        weight_gradient: (O, I); ``bias_gradient``: (O,), not zero everywhere.
    """
    row = int(bias_gradient.abs().argmax())
    return weight_gradient[row] / bias_gradient[row]


def gradient(loss: Tensor, weights: Sequence[Tensor], again: bool = False) -> list[Tensor]:
    """The gradient of a loss; zero for what it does not depend on. ``again``: can be differentiated itself."""
    return list(torch.autograd.grad(loss, weights, create_graph=again, allow_unused=True, materialize_grads=True))


def like_original(found: Tensor, original: Tensor) -> Tensor:
    """``found`` at the gain and offset that fit the original best: no gradient of a model that standardises tells them.

    Args, returns: (H, W), float.
    """
    centred, goal = found - found.mean(), original - original.mean()
    gain = (centred * goal).sum() / centred.square().sum().clamp(min=1e-12)
    return (gain * centred + original.mean()).clamp(0.0, 255.0)


def psnr(found: Tensor, original: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, of images from 0 to 255; 100 where they are the same."""
    error = (found - original).square().mean().clamp(min=255.0**2 * 1e-10)
    return float(10.0 * torch.log10(255.0**2 / error))


def ssim(found: Tensor, original: Tensor) -> float:
    """Structural similarity (Wang et al. 2004), of (H, W) images from 0 to 255, over 7 x 7 windows; 1: the same."""
    both = torch.stack([found, original])[:, None].double()
    stacked = torch.cat([both, both.square(), (both[:1] * both[1:])])
    a, b, aa, bb, ab = functional.avg_pool2d(stacked, 7, stride=1)[:, 0]
    sample = 49.0 / 48.0  # the paper's variances are of samples
    of_a, of_b, shared = sample * (aa - a * a), sample * (bb - b * b), sample * (ab - a * b)
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    value = (2 * a * b + c1) * (2 * shared + c2) / ((a * a + b * b + c1) * (of_a + of_b + c2))
    return float(value.mean())
