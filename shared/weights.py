"""Which tensors of an objective travel, and how are they read and put back?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.errors import MessageError

if TYPE_CHECKING:  # processes that only pass weights on start without torch
    from torch import Tensor, nn

Weights = dict[str, NDArray[np.generic]]
Values = TypeVar("Values", "NDArray[np.generic]", "Tensor")


def size_bytes(weights: Mapping[str, NDArray[np.generic]]) -> int:
    """Of the values."""
    return sum(array.nbytes for array in weights.values())


def alike(updates: Sequence[Weights]) -> Weights:
    """Those tensors that are the same in all of some updates, of which there is one at least."""
    first, *others = updates
    return {name: array for name, array in first.items() if all(np.array_equal(array, o[name]) for o in others)}


def small_together(weights: Mapping[str, Values], is_small: Callable[[Values], bool]) -> list[list[str]]:
    """Names in groups: all small tensors of one type, each other one by itself, both as they come.

    What is done tensor by tensor takes longer in calls than in work where there are many small ones.
    """
    groups: dict[object, list[str]] = {}
    for name, values in weights.items():
        groups.setdefault((values.dtype, "" if is_small(values) else name), []).append(name)
    return list(groups.values())


def hash_weights(found: hashlib._Hash, weights: Mapping[str, NDArray[np.generic]]) -> None:
    """Put names, types, shapes and values into a hash, from where they lie."""
    for name, array in sorted(weights.items()):
        found.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def travelling(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, and floating point buffers that are saved (running statistics), by name, shared ones once."""
    found: dict[str, Tensor] = dict(module.named_parameters())
    buffers = {name: b for name, b in module.named_buffers() if b.is_floating_point()}
    if buffers:  # which of them are saved takes twice as long to ask as all else here
        saved = module.state_dict().keys()
        found |= {name: buffer for name, buffer in buffers.items() if name in saved}
    return found


def read_weights(module: nn.Module) -> Weights:
    """A copy of the travelling tensors as arrays."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in travelling(module).items()}


def write_weights(module: nn.Module, weights: Mapping[str, NDArray[np.generic]]) -> None:
    """Copy arrays into the travelling tensors, in place.

    Raises:
        MessageError: a name is missing or unknown, or a shape differs.
    """
    import torch

    tensors = travelling(module)
    if weights.keys() != tensors.keys():
        odd = sorted(weights.keys() ^ tensors.keys())[0]
        raise MessageError("weights", "must have the names of the model's tensors", value=odd)
    with torch.no_grad():
        for name, tensor in tensors.items():
            array = weights[name]
            if array.shape != tuple(tensor.shape):
                raise MessageError(f"weights {name}", f"must have shape {tuple(tensor.shape)}", value=array.shape)
            tensor.copy_(torch.from_numpy(np.asarray(array, order="C")))


def carry_encoders(source: Mapping[str, NDArray[np.generic]], target: Weights, prefix: str) -> Weights:
    """``target`` with the image encoders of a pretrained ``source`` whose names it has.

    Args:
        prefix: what ``target`` puts before ``encoders.``.
    """
    carried = {prefix + name: array for name, array in source.items() if name.startswith("encoders.")}
    return target | {name: array for name, array in carried.items() if name in target}
