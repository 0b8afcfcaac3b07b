"""Are the pixels kept, all of them, and nothing else?"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from client.ingest.pictures import PictureError, keep_pixels
from tests.factories import encode_image, make_pixels

SECRET = "Doe^Jane 1950-01-01"
DEEP = (np.arange(30 * 20, dtype=np.uint16) * 100).reshape(30, 20)


def decoded(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with a chunk after its header."""
    return png[:33] + chunk(kind, data) + png[33:]


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    made[0x010E] = SECRET
    return made


def talkative(kind: str) -> bytes:
    """A file with text, EXIF, comment and colour profile that name a patient."""
    buffer, image = io.BytesIO(), Image.fromarray(make_pixels(1, 24, 20))
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", SECRET)
        text.add_itxt("Title", SECRET, zip=True)
        image.save(buffer, kind, pnginfo=text, exif=exif(1), icc_profile=SECRET.encode())
        return buffer.getvalue() + SECRET.encode()
    if kind == "JPEG":
        image.save(buffer, kind, exif=exif(1), comment=SECRET, icc_profile=SECRET.encode())
        return buffer.getvalue() + SECRET.encode()
    image.save(buffer, kind, description=SECRET, icc_profile=SECRET.encode())
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("mirror", [False, True])
def test_whatever_a_file_tells_beside_its_pixels_is_gone(kind: str, mirror: bool) -> None:
    content = talkative(kind)
    assert SECRET.encode() in content
    picture = keep_pixels(content, mirror)
    inflated = b"".join(zlib.decompress(content[41:-16]) for content in [picture.content] if picture.suffix == "png")
    assert SECRET.encode() not in picture.content + inflated
    image = Image.open(io.BytesIO(picture.content))
    assert not image.getexif()
    assert set(image.info) <= {"transparency"}
    expected = decoded(content)
    np.testing.assert_array_equal(decoded(picture.content), expected[:, ::-1] if mirror else expected)
    assert (picture.height, picture.width) == (24, 20)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_pixels_are_those_that_pillow_reads(shape: tuple[int, ...], kind: str) -> None:
    if kind in ("JPEG", "BMP") and shape[-1] == 4:
        pytest.skip("has no transparency")
    content = encode_image(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), kind)
    np.testing.assert_array_equal(decoded(keep_pixels(content).content), decoded(content))
    np.testing.assert_array_equal(decoded(keep_pixels(content, True).content), decoded(content)[:, ::-1])


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK"])
def test_other_kinds_of_pixels_look_the_same(mode: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(make_pixels(3)).convert(mode).save(buffer, "TIFF")
    expected = Image.open(buffer).convert("RGB")
    found = Image.open(io.BytesIO(keep_pixels(buffer.getvalue()).content)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_stay_sixteen_bits(kind: str) -> None:
    np.testing.assert_array_equal(decoded(keep_pixels(encode_image(DEEP, kind), True).content), DEEP[:, ::-1])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("pixels", [make_pixels(1, 3, 8), DEEP])
def test_arrays_are_kept_as_they_are(pixels: NDArray[np.uint8], mirror: bool) -> None:
    picture = keep_pixels(pixels, mirror)
    found = decoded(picture.content)
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels[:, ::-1] if mirror else pixels)
    assert keep_pixels(picture.content).content == picture.content


def test_pixels_of_other_numbers_are_stretched_to_sixteen_bit() -> None:
    scan = np.linspace(-1, 1, 256, dtype=np.float32).reshape(16, 16)
    found = decoded(keep_pixels(encode_image(scan, "TIFF")).content)
    assert (found.min(), found.max()) == (0, 65535)
    assert (np.diff(found.ravel().astype(int)) > 0).all()


def test_a_clean_png_is_kept_byte_for_byte() -> None:
    content = encode_image(make_pixels(1))
    assert keep_pixels(content).content == content


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_a_picture_is_turned_upright(kind: str, orientation: int) -> None:
    corner = np.zeros((32, 48), np.uint8)
    corner[:16, :16] = 255  # of the picture when it is upright
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # transpositions that store it so, by orientation
    stored = Image.fromarray(corner)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    buffer = io.BytesIO()
    stored.save(buffer, kind, exif=exif(orientation))
    picture = keep_pixels(buffer.getvalue())
    assert (picture.height, picture.width) == (32, 48)
    assert np.abs(decoded(picture.content).astype(int) - corner).max() < 60


def test_colours_that_the_adobe_segment_explains_stay_as_they_are() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8), "CMYK").save(buffer, "JPEG")
    picture = keep_pixels(buffer.getvalue())
    assert picture.suffix == "jpg"
    np.testing.assert_array_equal(decoded(picture.content), decoded(buffer.getvalue()))


def test_a_progressive_jpeg_with_restarts_is_kept() -> None:
    buffer = io.BytesIO()
    Image.fromarray(make_pixels(1, 64, 64)).save(buffer, "JPEG", progressive=True, restart_marker_rows=1)
    np.testing.assert_array_equal(decoded(keep_pixels(buffer.getvalue()).content), decoded(buffer.getvalue()))


def animated(kind: str) -> bytes:
    buffer, frames = io.BytesIO(), [Image.fromarray(make_pixels(seed)) for seed in range(2)]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims a size."""
    data = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", data) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


PNG = encode_image(make_pixels(1))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"a note about the patient", "not an image"),
        (encode_image(make_pixels(1), "GIF"), "not an image"),
        (PNG[:-1], "end is missing"),
        (PNG[:50], "end is missing"),
        (PNG[:8], "end is missing"),
        (PNG[:8] + chunk(b"IEND", b""), "no header"),
        (PNG[:33] + chunk(b"IEND", b""), "without pixels"),
        (with_chunk(PNG, b"IHDR", PNG[16:29]), "header is wrong"),
        (with_chunk(PNG, b"ABCD", b""), "critical chunk"),
        (animated("PNG"), "animated"),
        (animated("TIFF"), "several images"),
        (bomb(60_000, 60_000), "megapixels"),
        (bomb(0, 5), "no pixels"),
        (encode_image(make_pixels(1, 64, 64), "JPEG")[:-300], "damaged"),
        (encode_image(make_pixels(1, 64, 64), "TIFF")[:-300], "damaged"),
        (encode_image(np.full((4, 4), np.nan, np.float32), "TIFF"), "not finite"),
        (np.zeros((3, 0), np.uint8), "no pixels"),
        (np.zeros((3, 3, 3), np.uint8), "rows and columns"),
        (np.zeros((3, 3), np.float32), "rows and columns"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=reason):
        keep_pixels(content)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(PictureError, match="megapixels"):
        keep_pixels(np.broadcast_to(np.zeros(1, np.uint8), (1 << 14, 1 << 13)))


@given(st.integers(0, len(PNG) - 1), st.integers(0, 7))
def test_every_flipped_bit_of_a_png_is_found(place: int, bit: int) -> None:
    content = bytearray(PNG)
    content[place] ^= 1 << bit
    with pytest.raises(PictureError):
        keep_pixels(bytes(content))


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd metadata in files that it can decode
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "BMP"])
@given(flips=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4), cut=st.integers(0, 500))
def test_a_damaged_file_is_kept_or_refused(kind: str, flips: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(encode_image(make_pixels(1), kind))
    for place, value in flips:
        content[place % len(content)] = value
    try:
        picture = keep_pixels(bytes(content[: len(content) - cut]))
    except PictureError:
        return
    assert decoded(picture.content).shape[:2] == (picture.height, picture.width)
