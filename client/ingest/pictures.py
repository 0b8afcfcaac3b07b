"""What is kept of a picture? Its pixels alone: no text, no camera data, no colour profile, no thumbnail.

A PNG is copied chunk by chunk and a JPEG segment by segment, so that pixels stay as they are. A PNG is not even
decoded, since its checksums tell damage (PNG specification, 3rd edition, section 5; JPEG: ITU-T T.81, annex B).
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from client.png import ANIMATED, SIGNATURE, PngError, chunks

_KEPT_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_LARGEST_PIXELS = 1 << 26
_ORIENTATION = 0x0112  # of EXIF
_ADOBE = 0xEE  # says how the colours are coded
_OTHERS = ("TIFF", "BMP")  # decoded by Pillow and kept as PNG
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # within coded data FF 00 and restarts are none

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


class PictureError(Exception):
    """A picture that cannot be kept; the text is the reason and names nobody."""


@dataclass(frozen=True)
class Picture:
    """A file of pixels alone.

    Attributes:
        content: the bytes of a PNG or JPEG file.
        suffix: ``png`` or ``jpg``.
        height, width: in pixels.
    """

    content: bytes
    suffix: str
    height: int
    width: int


def keep_pixels(image: Pixels | bytes, mirror: bool = False) -> Picture:
    """A picture of an image's pixels, upright as its EXIF orientation says.

    Args:
        image: pixels (H, W), or the bytes of a PNG, JPEG, TIFF or BMP file.
        mirror: left becomes right.

    Raises:
        PictureError: damaged, animated, of several images, of another format, or larger than 64 megapixels.
    """
    if not isinstance(image, bytes):
        return _from_pixels(image, mirror)
    if image.startswith(SIGNATURE):
        try:
            picture, orientation = _clean_png(image)
        except PngError as error:
            raise PictureError(str(error)) from None
    elif image.startswith(b"\xff\xd8"):
        picture, orientation = _clean_jpeg(image)
    else:
        return _convert(image, _OTHERS, mirror)
    if mirror or orientation != 1:
        return _convert(image, ("PNG", "JPEG"), mirror)
    return picture


def _from_pixels(pixels: Pixels, mirror: bool) -> Picture:
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
        raise PictureError("has no pixels in rows and columns of 8 or 16 bit")
    _check_size(*pixels.shape)
    upright = pixels[:, ::-1] if mirror else pixels
    return _encode(Image.fromarray(np.ascontiguousarray(upright)))


def _encode(image: Image.Image) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return _clean_png(buffer.getvalue())[0]  # whatever Pillow adds of what it knew of the source


def _check_size(height: int, width: int) -> None:
    if not height or not width:
        raise PictureError("has no pixels")
    if height * width > _LARGEST_PIXELS:
        raise PictureError("has more than 64 megapixels")


# PNG


def _clean_png(content: bytes) -> tuple[Picture, int]:
    """The picture without ancillary chunks, and the EXIF orientation."""
    parts: list[bytes | memoryview] = [SIGNATURE]
    kinds: list[bytes] = []
    orientation, height, width = 1, 0, 0
    for kind, data, whole in chunks(content):
        if not kinds and kind != b"IHDR":
            raise PictureError("is a damaged PNG: it has no header")
        if kind == b"IHDR":
            if kinds or len(data) != 13:
                raise PictureError("is a damaged PNG: its header is wrong")
            width, height = struct.unpack(">II", data[:8])
            _check_size(height, width)
        elif kind in ANIMATED:
            raise PictureError("is an animated PNG")
        elif kind == b"eXIf":
            orientation = _orientation(data)
        elif kind[0] & 0x20 == 0 and kind not in _KEPT_CHUNKS:
            raise PictureError("is a PNG with a critical chunk that is not known")
        if kind in _KEPT_CHUNKS:
            parts.append(whole)
        kinds.append(kind)
    if b"IDAT" not in kinds:
        raise PictureError("is a PNG without pixels")
    kept = content if sum(map(len, parts)) == len(content) else b"".join(parts)
    return Picture(kept, "png", height, width), orientation


def _orientation(data: memoryview) -> int:
    exif = Image.Exif()
    try:
        exif.load(bytes(data))
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # many kinds, of a block that is not needed for the pixels
        return 1


# JPEG


def _clean_jpeg(content: bytes) -> tuple[Picture, int]:
    """The picture without application segments and comments, and the EXIF orientation; it is decoded as a test."""
    before, orientation = _decode_jpeg(content)
    kept = b"".join(_segments(content))
    after, _ = _decode_jpeg(kept)
    if before.mode != after.mode or before.tobytes() != after.tobytes():
        raise PictureError("is a JPEG whose pixels depend on what would be removed")
    return Picture(kept, "jpg", after.height, after.width), orientation


def _decode_jpeg(content: bytes) -> tuple[Image.Image, int]:
    image = _open(content, ("JPEG",))
    return image, int(image.getexif().get(_ORIENTATION, 1))


def _segments(content: bytes) -> Iterator[bytes]:
    """The segments that are needed to decode, from the start of the image to its end; what follows is dropped."""
    yield b"\xff\xd8"
    position = 2
    while True:
        found = _MARKER.search(content, position)
        if found is None:
            raise PictureError("is a damaged JPEG: its end is missing")
        if found.start() > position:
            yield content[position : found.start()]  # coded data
        marker, start = found[1][0], found.end()
        if marker == 0xD9:
            yield b"\xff\xd9"
            return
        position = start + int.from_bytes(content[start : start + 2], "big")
        if position < start + 2:
            raise PictureError("is a damaged JPEG: a segment is too short")
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker == _ADOBE:
            yield b"\xff" + bytes([marker]) + content[start:position]


# Whatever Pillow has to decode


def _convert(content: bytes, formats: tuple[str, ...], mirror: bool) -> Picture:
    """Decoded, turned upright, mirrored where asked, and kept as PNG."""
    image = _open(content, formats)
    image = ImageOps.exif_transpose(image)
    image = ImageOps.mirror(image) if mirror else image
    return _encode(_png_mode(image))


def _open(content: bytes, formats: tuple[str, ...]) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError("has more than 64 megapixels") from None
    except Exception:  # whatever Pillow meets in bytes that are no picture
        raise PictureError("is not an image that can be decoded") from None
    _check_size(image.height, image.width)
    try:
        if image.format not in ("JPEG", "MPO") and getattr(image, "n_frames", 1) != 1:
            raise PictureError("holds several images")
        image.load()
    except PictureError:
        raise
    except Exception as error:
        raise PictureError(f"is damaged: {type(error).__name__}") from None
    return image


def _png_mode(image: Image.Image) -> Image.Image:
    """In a mode that a PNG can hold; what has other values than 8 or 16 bit is stretched to 16 bit."""
    if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        return image
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise PictureError("has pixels that are not finite")
    if image.mode == "F" or low < 0 or high > np.iinfo(np.uint16).max:
        values = (values.astype(np.float64) - low) * (65535 / max(high - low, 1e-9))
    return Image.fromarray(values.astype(np.uint16))
