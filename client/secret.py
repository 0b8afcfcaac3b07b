"""From what does a site draw its samples and its noise? From a secret of its own and from the identity of a release.

The coordinator knows the study's seed, and must not know the noise. A task that is repeated gives the same bits, so it
releases nothing new; whatever could change the answer changes the noise, so no two answers differ by data alone.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

import numpy as np
import torch

from shared.errors import KeyFileError
from shared.keys import write_secret

SECRET = "state/privacy.key"
_BYTES = 32
_WORDS = 624  # of a Mersenne twister's state


def site_secret(folder: Path) -> bytes:
    """The secret of a site folder, made on first use.

    Raises:
        KeyFileError: it can be read by others, or is not what was made.
    """
    file = folder / SECRET
    if not file.exists():
        draft = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
        write_secret(draft, secrets.token_bytes(_BYTES))
        try:
            os.link(draft, file)  # whole or not at all, and the first of two processes wins
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        raise KeyFileError(str(file), "must be readable by its owner alone", value=oct(mode), remedy="chmod 600 it.")
    secret = file.read_bytes()
    if len(secret) != _BYTES:
        remedy = "Move it away: a new one is made, with which earlier answers cannot be repeated."
        raise KeyFileError(str(file), f"must hold {_BYTES} bytes", value=len(secret), remedy=remedy)
    return secret


def derive(secret: bytes, release: str, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose of one release, by HMAC-SHA256."""
    return hmac.new(secret, f"{release}\0{purpose}".encode(), hashlib.sha256).digest()


def numpy_generator(key: bytes) -> np.random.Generator:
    """Random numbers from 128 bits of a key."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big")))


def torch_generator(key: bytes, device: torch.device) -> torch.Generator:
    """Random numbers on a device from a key.

    On the processor the whole state is set: torch takes 32 bits of a seed there, which could all be tried.
    """
    generator = torch.Generator(device).manual_seed(int.from_bytes(key[:8], "big") >> 1)
    if device.type == "cpu":
        words = np.frombuffer(hashlib.shake_256(key).digest(4 * _WORDS), dtype="<u4").astype("<u8")
        state = generator.get_state()
        state[24 : 24 + 8 * _WORDS] = torch.from_numpy(words.view(np.uint8).copy())
        generator.set_state(state)
    return generator
