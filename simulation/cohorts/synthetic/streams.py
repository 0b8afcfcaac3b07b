"""Where does randomness come from, and what are arrays called? Every named part has a generator of its own."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pixels = NDArray[np.float32]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


def generator(seed: int, *names: object) -> np.random.Generator:
    """The generator of the part that ``names`` names; equal names and seed give equal numbers."""
    text = "/".join(str(name) for name in (seed, *names))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def timestamps(seconds: Integers) -> NDArray[np.datetime64]:
    """Seconds since 1970 as timestamps with microseconds, the resolution of the site folder."""
    return seconds.astype("datetime64[s]").astype("datetime64[us]")
