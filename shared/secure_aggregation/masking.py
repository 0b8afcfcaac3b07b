"""How is a vector masked? By adding the stream of a cipher, number by number, each modulo the size of its type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

_BLOCK_BYTES = 2**18  # which stays in the processor's cache while all masks are added
_ZEROS = bytes(_BLOCK_BYTES)
_SPARE_BYTES = 15  # that the cipher wants to have room for

Words = NDArray[np.uint32]
Sums = NDArray[np.uint64]


@dataclass(frozen=True)
class Vector:
    """Numbers that add up modulo 2**32 and 2**64.

    Attributes:
        words: (P,) changes of weights; empty where nothing is trained.
        sums: (S,) counts and sums.
    """

    words: Words
    sums: Sums

    @staticmethod
    def zeros(words: int, sums: int) -> Vector:
        """Neutral under addition."""
        return Vector(np.zeros(words, np.uint32), np.zeros(sums, np.uint64))

    def add(self, other: Vector) -> None:
        """Add another one, in place."""
        np.add(self.words, other.words, out=self.words)
        np.add(self.sums, other.sums, out=self.sums)


@dataclass(frozen=True)
class MaskKey:
    """A key of AES-128 whose stream (counter mode) is added, or subtracted. One key masks one vector."""

    key: bytes
    subtract: bool


def add_masks(vector: Vector, masks: Sequence[MaskKey]) -> None:
    """Add masks to a vector, in place."""
    streams = [(_Stream(mask.key), np.subtract if mask.subtract else np.add) for mask in masks]
    for part in (vector.words, vector.sums):
        step = _BLOCK_BYTES // part.itemsize
        for start in range(0, len(part), step):
            block = part[start : start + step]
            for stream, combine in streams:
                combine(block, stream.take(block.nbytes).view(part.dtype), out=block)


class _Stream:
    """The stream of one key, from its beginning."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._buffer = np.empty(_BLOCK_BYTES + _SPARE_BYTES, np.uint8)

    def take(self, count: int) -> NDArray[np.uint8]:
        """The next bytes, until more are taken."""
        self._cipher.update_into(memoryview(_ZEROS)[:count], self._buffer.data)
        return self._buffer[:count]
