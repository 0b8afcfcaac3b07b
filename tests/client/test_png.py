"""Has an inflated PNG the pixels of the PNG, whatever that is?"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from client.png import SIGNATURE, PngError, chunks, inflated

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def encoded(mode: str, height: int, width: int, seed: int, **options: object) -> bytes:
    """A picture, smooth enough that its rows have filters."""
    dice = np.random.default_rng(seed)
    if mode == "I;16":
        values = np.cumsum(dice.integers(0, 900, (height, width)), axis=1).astype(np.uint16)
        image = Image.fromarray(values)
    else:
        values = np.cumsum(dice.integers(0, 9, (height, width, 4)), axis=1).astype(np.uint8)
        image = Image.fromarray(values, "RGBA").convert("RGB").convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def pixels(content: bytes) -> tuple[str, bytes]:
    """Mode and pixels, with palette and transparency."""
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        image.load()
        return image.mode, image.convert("RGBA").tobytes() + image.tobytes()


def rebuilt(parts: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with the checksums that they should have."""
    whole = [SIGNATURE]
    for kind, data in parts:
        whole.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(whole)


def parts(content: bytes) -> list[tuple[bytes, bytes]]:
    return [(kind, bytes(data)) for kind, data, _ in chunks(content)]


@given(st.sampled_from(MODES), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9), st.integers(0, 9))
def test_the_pixels_are_the_same_and_not_compressed(mode: str, height: int, width: int, level: int, seed: int) -> None:
    content = encoded(mode, height, width, seed, compress_level=level)
    found = inflated(content)
    assert pixels(found) == pixels(content)
    data = zlib.decompress(b"".join(data for kind, data in parts(content) if kind == b"IDAT"))
    (stored,) = (data for kind, data in parts(found) if kind == b"IDAT")
    assert zlib.decompress(stored) == data
    assert len(stored) == len(data) + 2 + 5 + 4


def test_a_large_picture_has_many_blocks() -> None:
    content = encoded("RGB", 300, 400, 1)
    assert len(inflated(content)) > 300 * 400 * 3
    assert pixels(inflated(content)) == pixels(content)


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_palette_and_transparency_are_kept_and_texts_after_the_pixels_do_no_harm(mode: str) -> None:
    content = encoded(mode, 20, 30, 1, transparency=(1, 2, 3) if mode == "RGB" else 3)
    *whole, end = parts(content)
    found = inflated(rebuilt([*whole, (b"tEXt", b"a\0b"), end]))
    assert pixels(found) == pixels(content)
    assert [kind for kind, _ in parts(found)][-2:] == [b"IDAT", b"IEND"]


def test_pixels_in_many_pieces_are_put_together() -> None:
    content = encoded("L", 40, 40, 2)
    pieces = []
    for kind, data in parts(content):
        step = 7 if kind == b"IDAT" else max(len(data), 1)
        pieces += [(kind, data[start : start + step]) for start in range(0, max(len(data), 1), step)]
    assert len(pieces) > 10
    assert pixels(inflated(rebuilt(pieces))) == pixels(content)


def changed_header(content: bytes, place: int, value: int) -> bytes:
    (kind, data), *rest = parts(content)
    return rebuilt([(kind, data[:place] + bytes([value]) + data[place + 1 :]), *rest])


def test_what_is_not_made_stays_as_it_is() -> None:
    content = encoded("L", 40, 40, 2)
    (header, *rest) = parts(content)
    for other in (
        b"",
        b"\xff\xd8\xff no PNG",
        content[:-20],
        content[: len(content) // 2],
        changed_header(content, 12, 1),  # interlaced
        changed_header(content, 9, 5),  # a colour type that there is not
        changed_header(content, 4, 9),  # of 150 million rows
        changed_header(content, 7, 90),  # of more rows than there are
        rebuilt([header, (b"acTL", b"\0" * 8), *rest]),
        rebuilt([header, (b"IDAT", b"no deflate"), (b"IEND", b"")]),
        rebuilt([header, (b"IEND", b"")]),
        rebuilt([(b"IHDR", b"short"), *rest]),
        rebuilt(rest),
    ):
        assert inflated(other) is other


def test_more_than_the_pixels_is_not_inflated() -> None:
    header, (_, data), end = parts(encoded("L", 8, 8, 3))
    bomb = zlib.compress(zlib.decompress(data) + b"\0" * (1 << 28))
    found = inflated(rebuilt([header, (b"IDAT", bomb), end]))
    assert len(found) < 1000
    assert pixels(found) == pixels(rebuilt([header, (b"IDAT", data), end]))


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 255))
def test_any_bytes_are_taken_and_what_still_decodes_is_the_same(more: bytes, place: int, value: int) -> None:
    content = encoded("L", 12, 12, 5)
    damaged = bytearray(content)
    damaged[place % len(damaged)] ^= value
    for other in (SIGNATURE + more, content[: place % len(content)] + more, bytes(damaged)):
        found = inflated(other)
        try:
            expected = pixels(other)
        except Exception:  # whatever Pillow says of damage
            continue
        assert pixels(found) == expected


def test_a_wrong_checksum_and_a_missing_end_are_told() -> None:
    content = encoded("L", 12, 12, 5)
    with pytest.raises(PngError, match="end is missing"):
        list(chunks(content[:-1]))
    damaged = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    with pytest.raises(PngError, match="checksum is wrong"):
        list(chunks(damaged))
    assert len(list(chunks(damaged, verify=False))) == len(list(chunks(content)))
