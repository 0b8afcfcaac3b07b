"""How is a long series taken some at a time?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many items, the last one of fewer; as Python 3.12 has it in itertools."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
