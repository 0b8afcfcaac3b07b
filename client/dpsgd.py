"""How does DP-SGD bound and hide a patient? Poisson samples of patients, a clipped gradient each, noise on the sum.

Abadi et al., arXiv 1607.00133. One patient is all their examples: their gradients are averaged before the clip.
Per-example gradients come from ``torch.func.vmap`` over the untouched model; clip and noise are Opacus's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from client.gradients import Take
from client.store import Rows
from shared.accounting import Release
from shared.config import PatientDPSGD, Stage
from shared.inputs import Alike
from shared.objectives.objective import Objective
from shared.weights import small_together

_SMALL = 2**10  # numbers of a weight that is put together with others

Named = dict[str, Tensor]


class PatientGradients:
    """The noised mean of the clipped gradients of a Poisson sample of patients.

    The sum is divided by the number of patients that is expected, so that how many were drawn is not told.

    Args:
        take: makes a batch of some rows.
        subjects: the patient of every row that ``take`` knows.
        release: of the round: noise multiplier, sampling rate and steps.
        random: draws the patients; ``noise`` the noise. Both from the site's secret.
    """

    def __init__(
        self,
        take: Take,
        subjects: NDArray[np.int64],
        stage: Stage,
        privacy: PatientDPSGD,
        release: Release,
        random: np.random.Generator,
        noise: Generator,
    ) -> None:
        self._take, self._subjects, self._stage, self._privacy = take, subjects, stage, privacy
        self._release, self._random, self._noise = release, random, noise
        self._expected = 0.0  # patients in a step
        self._blocks: _Blocks | None = None

    def draw(self, rows: Rows, seed: int) -> list[Rows]:
        """Each patient is in each step by a chance of its own; a step may be of nobody."""
        patients, patient = np.unique(self._subjects[rows], return_inverse=True)
        self._expected = self._release.sampling_rate * len(patients)
        steps = []
        for _ in range(self._release.steps):
            chosen = self._random.random(len(patients)) < self._release.sampling_rate
            steps.append(self._limit(rows[chosen[patient]]))
        return steps

    def _limit(self, rows: Rows) -> Rows:
        """At most ``per_patient`` rows of each patient, drawn at random; a patient's rows stand together."""
        rows = self._random.permutation(rows)
        rows = rows[np.argsort(self._subjects[rows], kind="stable")]
        _, first, count = np.unique(self._subjects[rows], return_index=True, return_counts=True)
        place = np.arange(len(rows)) - np.repeat(first, count)
        return rows[place < self._privacy.per_patient]

    def backward(self, objective: Objective, rows: Rows, generator: Generator) -> Tensor | None:
        """The loss is not told: it would be another release of the patients' data."""
        blocks = self._blocks = self._blocks or _Blocks(_trained(objective, self._take))
        optimizer = DPOptimizer(
            torch.optim.SGD(blocks.flat),  # holds the weights; the stage's optimizer takes the steps
            noise_multiplier=self._release.noise_multiplier,
            max_grad_norm=self._privacy.clip,
            expected_batch_size=self._expected,  # not whole, and need not be
            generator=self._noise,
            secure_mode=True,  # of floating point attacks (arXiv 2107.10138); it needs no generator of its own
        )
        for gradients in self._of_patients(objective, blocks, rows, generator):
            for block, gradient in zip(blocks.flat, gradients, strict=True):
                block.grad_sample = gradient  # type: ignore[attr-defined]
            optimizer.clip_and_accumulate()
        optimizer.add_noise()
        optimizer.scale_grad()
        blocks.hand_over()
        return None

    def _of_patients(
        self, objective: Objective, blocks: _Blocks, rows: Rows, generator: Generator
    ) -> Iterator[list[Tensor]]:
        """Gradients (P, …) of at most ``micro_batch`` patients at once; of no patient, (0, …)."""
        if not len(rows):
            yield blocks.zeros(0)
        starts = np.unique(self._subjects[rows], return_index=True)[1][:: self._privacy.micro_batch]
        for part in np.split(rows, starts[1:]) if len(rows) else ():
            yield self._of_part(objective, blocks, part, generator)

    def _of_part(self, objective: Objective, blocks: _Blocks, rows: Rows, generator: Generator) -> list[Tensor]:
        device = blocks.flat[0].device
        _, patient, count = np.unique(self._subjects[rows], return_inverse=True, return_counts=True)
        patient_of_row = torch.from_numpy(patient).to(device)
        share = torch.from_numpy((1.0 / count)[patient]).to(device, torch.float32)
        mean = torch.zeros(len(count), len(rows), device=device)  # of each patient's rows, as a matrix
        mean[patient_of_row, torch.arange(len(rows), device=device)] = share
        total: list[Tensor] = []
        batch = self._take(rows).to(device)
        for at, examples in batch.alike():
            prepared = objective.prepare(examples, generator)
            if not prepared.tensors():  # nothing was seen of these
                continue
            gradients = example_gradients(objective, blocks.weights, prepared, self._stage.precision)
            found = [_finite(gradient) for gradient in blocks.join(gradients)]
            if len(at) == len(rows) == len(count):  # one example of each patient, all alike
                return found
            parts = [mean[:, at] @ gradient for gradient in found]
            total = [before + part for before, part in zip(total, parts, strict=True)] if total else parts
        return total or blocks.zeros(len(count))


class _Blocks:
    """Weights as rows of numbers, small ones together: calls for each of a hundred tensors cost more than the work.

    Args:
        weights: those that are trained, by name.

    Attributes:
        flat: each block, (n,); Opacus sees these.
    """

    def __init__(self, weights: Named) -> None:
        self.weights = weights
        self._names = small_together(weights, lambda weight: weight.numel() <= _SMALL)
        self.flat = [self._flatten(names).requires_grad_() for names in self._names]

    def _flatten(self, names: Sequence[str]) -> Tensor:
        if len(names) == 1:
            return self.weights[names[0]].detach().flatten()
        return torch.cat([self.weights[name].detach().flatten() for name in names])

    def join(self, gradients: Named) -> list[Tensor]:
        """Gradients by name (E, …) as one of each block (E, n)."""
        flat = {name: gradient.flatten(1) for name, gradient in gradients.items()}
        return [
            flat[names[0]] if len(names) == 1 else torch.cat([flat[name] for name in names], dim=1)
            for names in self._names
        ]

    def zeros(self, count: int) -> list[Tensor]:
        """The gradients of so many examples that tell nothing."""
        return [block.new_zeros(count, len(block)) for block in self.flat]

    def hand_over(self) -> None:
        """Give each weight its share of the blocks' gradient."""
        for names, block in zip(self._names, self.flat, strict=True):
            assert block.grad is not None
            shares = torch.split(block.grad, [self.weights[name].numel() for name in names])
            for name, share in zip(names, shares, strict=True):
                self.weights[name].grad = share.view_as(self.weights[name])
            block.grad = block.grad_sample = block.summed_grad = None  # type: ignore[attr-defined]


def _finite(gradients: Tensor) -> Tensor:
    """What is not finite counts nothing: it would make the whole sum so, and the means of other patients.

    A sum tells in a fraction of the time whether there is anything to replace; where it overflows there may not be.
    """
    return gradients if gradients.sum().isfinite() else gradients.nan_to_num(0.0, 0.0, 0.0)


def example_gradients(objective: Objective, weights: Named, prepared: Alike, precision: str) -> Named:
    """The gradient of each example's own loss, examples first.

    Args:
        weights: those that are trained, by name; the others stay as they are.
        prepared: what ``objective.prepare`` made of examples that are alike.
    """
    alone = _Loss(objective)
    device = next(iter(weights.values())).device

    def loss_of_one(trained: Named, tensors: Named) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"), _PlainForms():
            # Ties are left to the modules: a module under two names is put back wrongly otherwise.
            loss: Tensor = functional_call(alone, trained, (prepared.of_one(tensors),), tie_weights=False)
        return loss.float()

    # Dropout is drawn for each example by itself.
    of_each = vmap(grad_and_value(loss_of_one), in_dims=(None, 0), randomness="different")
    gradients, _ = of_each({f"objective.{name}": w.detach() for name, w in weights.items()}, prepared.tensors())
    return {name.removeprefix("objective."): gradient for name, gradient in gradients.items()}


class _PlainForms(TorchFunctionMode):
    """Functions for which vmap has no rule, or autograd under it no backward of mixed precision, in plain forms."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        if function is functional.adaptive_avg_pool2d and args[1] in (1, (1, 1)):
            return args[0].mean(dim=(-2, -1), keepdim=True)
        if function is functional.conv2d and len(args) == 7 and _is_of_points(*args):  # as modules call it
            return _point_product(*args[:3])
        if function in (functional.layer_norm, functional.group_norm):  # in full precision, as autocast on a GPU
            args = (args[0].float(), *args[1:])
        return function(*args, **(kwargs or {}))


def _is_of_points(image: Tensor, weight: Tensor, bias: object, stride: Any, padding: Any, _: Any, groups: int) -> bool:
    """Does a convolution look at one point of a batch's images at a time, with the same weights for each?"""
    of_one = (tuple(weight.shape[2:]), stride, padding, groups) == ((1, 1), (1, 1), (0, 0), 1)
    return of_one and image.dim() == 4


def _point_product(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Such a convolution as a product of matrices: so is each example's gradient, quicker than of a grouped one."""
    points = weight.flatten(1) @ image.flatten(2)
    return (points if bias is None else points + bias[:, None]).reshape(-1, len(weight), *image.shape[2:])


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **others: Any
) -> Tensor:
    """Scaled dot product attention (arXiv 1706.03762), (…, L, D)."""
    assert not others.get("is_causal")  # no encoder of images is
    similarity = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    weights = (similarity if attn_mask is None else similarity + attn_mask).softmax(-1)
    return functional.dropout(weights, dropout_p) @ value


class _Loss(nn.Module):
    """An objective's loss as a module's call, which is what ``functional_call`` calls."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, prepared: Any) -> Tensor:
        return self.objective.loss(prepared)


def _trained(objective: Objective, take: Take) -> Named:
    """The weights that a loss can reach: noise alone would carry the others away.

    Asked of an example with everything there, so that it does not depend on what patients have.
    """
    blank = take(np.zeros(1, dtype=np.int64)).blank().to(next(objective.parameters()).device)
    free = {name: weight for name, weight in objective.named_parameters() if weight.requires_grad}
    with torch.random.fork_rng():
        loss = objective(blank, Generator().manual_seed(0))
        found: Sequence[Tensor | None] = torch.autograd.grad(loss, list(free.values()), allow_unused=True)
    return {name: weight for (name, weight), grad in zip(free.items(), found, strict=True) if grad is not None}
