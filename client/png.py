"""What is in a PNG? Its chunks; and the same picture in a form that Pillow decodes in two thirds of the time.

Pillow inflates a picture row by row, each time on the slow path of its library. ISA-L inflates all of it at once, and
Pillow then finds bytes that it need not inflate, only unfilter (PNG specification, 3rd edition, sections 5, 9, 10).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from isal import isal_zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ANIMATED = (b"acTL", b"fcTL", b"fdAT")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_LARGEST_BYTES = 1 << 26  # that are inflated at once
_LARGEST_BLOCK = (1 << 16) - 1  # of a stream that is not compressed


class PngError(Exception):
    """Bytes that are no whole PNG; the text is the reason."""


def chunks(content: bytes, *, verify: bool = True) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Kind, data and the whole of each chunk, up to the end.

    Args:
        verify: the checksum of each chunk.

    Raises:
        PngError: a checksum is wrong, or the end missing.
    """
    view, start = memoryview(content), len(SIGNATURE)
    while start + 12 <= len(view):
        (length,) = struct.unpack_from(">I", view, start)
        end = start + 12 + length
        if end > len(view):
            break
        if verify and isal_zlib.crc32(view[start + 4 : end - 4]) != struct.unpack_from(">I", view, end - 4)[0]:
            raise PngError("is a damaged PNG: a checksum is wrong")
        kind = bytes(view[start + 4 : start + 8])
        yield kind, view[start + 8 : end - 4], view[start:end]
        if kind == b"IEND":
            return
        start = end
    raise PngError("is a damaged PNG: its end is missing")


def inflated(content: bytes) -> bytes:
    """A PNG of the same pixels, which are not compressed; the content as it is where that cannot be made.

    Damaged, animated, interlaced and very large pictures stay as they are, and so does what is no PNG.
    """
    if not content.startswith(SIGNATURE):
        return content
    head: list[bytes | memoryview] = [SIGNATURE]
    data: list[memoryview] = []
    size = 0
    try:
        for kind, part, whole in chunks(content, verify=False):
            if kind in ANIMATED:
                return content
            if kind == b"IDAT":
                data.append(part)
            elif kind == b"IHDR":
                size = _filtered_bytes(*struct.unpack(">IIBBBBB", part))
                head.append(whole)
            elif not data:
                head.append(whole)
        if not 0 < size <= _LARGEST_BYTES:
            return content
        pixels = isal_zlib.decompressobj().decompress(b"".join(data), size)
    except (PngError, struct.error, KeyError, isal_zlib.error):  # type: ignore[misc]  # its stub has an instance
        return content
    if len(pixels) != size:
        return content
    return b"".join([*head, *_chunk(b"IDAT", _stored(pixels)), *_chunk(b"IEND", [])])


def _filtered_bytes(width: int, height: int, depth: int, colour: int, _: int, __: int, interlace: int) -> int:
    """Bytes of all rows with their filters (section 9.2); 0 for those of another order."""
    return 0 if interlace else height * (1 + (width * depth * _CHANNELS[colour] + 7) // 8)


def _stored(pixels: bytes) -> list[bytes | memoryview]:
    """A zlib stream of what is not compressed, in pieces (RFC 1950; RFC 1951, section 3.2.4)."""
    pieces: list[bytes | memoryview] = [b"\x78\x01"]
    for start in range(0, len(pixels), _LARGEST_BLOCK):
        block = memoryview(pixels)[start : start + _LARGEST_BLOCK]
        is_last = start + len(block) == len(pixels)
        pieces += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
    return [*pieces, struct.pack(">I", isal_zlib.adler32(pixels))]


def _chunk(kind: bytes, data: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """A chunk in pieces."""
    checksum = isal_zlib.crc32(kind)
    for piece in data:
        checksum = isal_zlib.crc32(piece, checksum)
    return [struct.pack(">I", sum(map(len, data))), kind, *data, struct.pack(">I", checksum)]
