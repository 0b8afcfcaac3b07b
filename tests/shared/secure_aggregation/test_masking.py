"""Do masks cancel in the sum, and is nothing to be seen before? Whatever the lengths, the keys and the numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.secure_aggregation import masking
from shared.secure_aggregation.masking import MaskKey, Vector, add_masks


def random_vector(seed: int, words: int, sums: int) -> Vector:
    random = np.random.default_rng(seed)
    return Vector(random.integers(0, 2**32, words, dtype=np.uint32), random.integers(0, 2**64, sums, dtype=np.uint64))


def copied(vector: Vector) -> Vector:
    return Vector(vector.words.copy(), vector.sums.copy())


def assert_equal(a: Vector, b: Vector) -> None:
    assert a.words.tobytes() == b.words.tobytes()
    assert a.sums.tobytes() == b.sums.tobytes()


@given(st.integers(2, 5), st.integers(0, 40), st.integers(0, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_pairwise_masks_cancel_in_the_sum(sites: int, words: int, sums: int, seed: int) -> None:
    parts = [random_vector(seed + i, words, sums) for i in range(sites)]
    plain, masked = Vector.zeros(words, sums), Vector.zeros(words, sums)
    for i, part in enumerate(parts):
        plain.add(part)
        hidden = copied(part)
        add_masks(hidden, [MaskKey(pair_key(i, j), subtract=j < i) for j in range(sites) if j != i])
        masked.add(hidden)
    assert_equal(masked, plain)


def pair_key(i: int, j: int) -> bytes:
    return bytes([min(i, j), max(i, j)]) * 8


@pytest.mark.parametrize("block_bytes", [8, 64, 2**18])
def test_stream_is_aes_in_counter_mode_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    from Crypto.Cipher import AES  # another implementation

    monkeypatch.setattr(masking, "_BLOCK_BYTES", block_bytes)
    vector = Vector.zeros(33, 7)
    add_masks(vector, [MaskKey(b"0123456789abcdef", subtract=False)])
    sizes = [min(block_bytes, left) for left in range(33 * 4, 0, -block_bytes)]
    stream = AES.new(b"0123456789abcdef", AES.MODE_CTR, nonce=b"", initial_value=0).encrypt(bytes(33 * 4 + 7 * 8))
    assert sum(sizes) == 33 * 4
    assert vector.words.tobytes() == stream[: 33 * 4]
    assert vector.sums.tobytes() == stream[33 * 4 :]


def test_masked_vector_looks_random_and_other_keys_give_another() -> None:
    seen = []
    for key in (b"a" * 16, b"b" * 16):
        vector = Vector.zeros(4096, 512)
        add_masks(vector, [MaskKey(key, subtract=False)])
        bits = np.unpackbits(vector.words.view(np.uint8))
        assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)
        seen.append(vector.words)
    assert all((a != b).mean() > 0.99 for a, b in itertools.combinations(seen, 2))


def test_added_and_subtracted_mask_is_none() -> None:
    vector = random_vector(1, 100, 10)
    before = copied(vector)
    add_masks(vector, [MaskKey(b"k" * 16, subtract=False), MaskKey(b"k" * 16, subtract=True)])
    assert_equal(vector, before)
