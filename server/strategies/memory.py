"""What does a strategy remember between rounds, and how is it put back after a restart?

Flower's strategies keep their moments in private attributes and offer no way to read them, so this file looks at all of
an instance's attributes for arrays. ``tests/server/test_strategies.py`` tells when an upgrade breaks it. It also holds
the one other thing that Flower leaves global: strategies sample sites from ``random``'s global generator.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

Memory = dict[str, NDArray[Any]]
_NUMERIC = (np.ndarray, np.generic)  # arithmetic turns arrays without dimension into scalars


def read_memory(strategy: Strategy) -> Memory:
    """Every array that the strategy holds, by attribute: alone, in a list, in a mapping or in an ArrayRecord."""
    memory: Memory = {}
    for attribute, value in vars(strategy).items():
        form, arrays = _arrays_of(value)
        # The place keeps the order, by which some strategies pair one mapping with another.
        memory |= {f"{form}/{attribute}/{place:06d}/{name}": a for place, (name, a) in enumerate(arrays.items())}
    return memory


def write_memory(strategy: Strategy, memory: Memory) -> None:
    """Give a new strategy what ``read_memory`` read of another."""
    grouped: dict[tuple[str, str], dict[str, NDArray[Any]]] = {}
    for key in sorted(memory, key=lambda key: key.split("/", 3)[:3]):
        form, attribute, _, name = key.split("/", 3)
        grouped.setdefault((form, attribute), {})[name] = memory[key]
    for (form, attribute), arrays in grouped.items():
        value: object = arrays
        if form == "array":
            value = arrays[""]
        elif form == "list":
            value = list(arrays.values())
        elif form == "record":
            value = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        setattr(strategy, attribute, value)


def _arrays_of(value: object) -> tuple[str, dict[str, NDArray[Any]]]:
    """The form of an attribute and its arrays by name; none when it holds no arrays."""
    if isinstance(value, np.ndarray):
        return "array", {"": value}
    if isinstance(value, ArrayRecord):
        return "record", {name: item.numpy() for name, item in value.items()}
    if isinstance(value, dict) and all(isinstance(item, _NUMERIC) for item in value.values()):
        return "mapping", {name: np.asarray(item) for name, item in value.items()}
    if isinstance(value, list) and all(isinstance(item, _NUMERIC) for item in value):
        return "list", {str(place): np.asarray(item) for place, item in enumerate(value)}
    return "none", {}


@contextmanager
def sampling_seed(seed: int) -> Iterator[None]:
    """Seed the global generator for a call of a strategy, and leave it as it was."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
