"""How does one frame of a DICOM file become pixels? One frame is in memory at a time.

What a compressed frame says about itself is compared with the header before a decoder sees it: a few bytes may claim
gigabytes.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import JPEG2000TransferSyntaxes, RLELossless

from client.ingest.dicom.document import Document
from client.ingest.dicom.format import Format
from client.ingest.export import QUARANTINED, SKIPPED, LeftOutError
from client.ingest.pictures import Pixels

_MOST_TILES = 1024
_END = b"\xff\xd9"  # of JPEG, JPEG-LS and JPEG 2000 alike
_SAME_GREY = 4  # channels of a grey image differ by no more after lossy compression as YCbCr


def decode_frame(document: Document, given: Format, index: int) -> Pixels:
    """The pixels (H, W) of one frame, dark to bright over the whole range of uint8 or uint16.

    Raises:
        LeftOutError: a colour image, or a frame that does not fit the header.
    """
    if document.syntax.is_encapsulated:
        source = encapsulate([_compressed(document, given, index)], has_bot=False)
    else:
        document.stream.seek(document.offset + index * given.frame_bytes)
        source = document.stream.read(given.frame_bytes)
        source += b"\0" * (len(source) % 2)  # as the standard wants it
    options: dict[str, Any] = {
        "rows": given.rows,
        "columns": given.columns,
        "samples_per_pixel": given.samples,
        "photometric_interpretation": given.photometric,
        "planar_configuration": given.planar,
        "bits_allocated": given.bits_allocated,
        "bits_stored": given.bits_stored,
        "pixel_representation": int(given.is_signed),
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_vr": document.vr or "OW",
        "correct_unused_bits": False,  # it takes for granted that the unused ones are on top
    }
    values, _ = get_decoder(document.syntax).as_array(source, index=0, **options)
    return _full_range(_grey(values), given, is_native=not document.syntax.is_encapsulated)


def _compressed(document: Document, given: Format, index: int) -> bytes:
    document.stream.seek(document.offset)
    frame = get_frame(document.stream, index, number_of_frames=given.frames)
    if document.syntax == RLELossless:  # states no size; expands to at most 64 times its length
        fits = len(frame) <= 2 * given.frame_bytes + 1024
    else:
        stated = _jpeg_2000_shape if document.syntax in JPEG2000TransferSyntaxes else _jpeg_shape
        fits = stated(frame) == (given.rows, given.columns, given.samples)
        # Without its end marker CharLS reads on beyond the frame, for seconds, and openjpeg leaves out what is missing.
        if not frame.rstrip(b"\0\xff").endswith(_END):  # frames are padded to an even length
            raise LeftOutError(QUARANTINED, "has a frame that is cut off")
    if not fits:
        raise LeftOutError(QUARANTINED, "has a frame of another size than its header says")
    return frame


def _jpeg_shape(frame: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, channels) of a JPEG or JPEG-LS stream, from its frame header (ITU-T T.81, B.2.2; T.87, C.2.2)."""
    place = 2
    while frame[place : place + 1] == b"\xff":
        marker, length = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4])
        if marker in (0xC0, 0xC1, 0xC2, 0xC3, 0xF7):
            rows, columns = frame[place + 5 : place + 7], frame[place + 7 : place + 9]
            return int.from_bytes(rows), int.from_bytes(columns), frame[place + 9]
        place += 2 + length
    return None


def _jpeg_2000_shape(frame: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, channels) of a JPEG 2000 codestream, from its SIZ segment (ITU-T T.800, A.5.1).

    None also for one of very many tiles: openjpeg sets aside memory for each when it opens the stream.
    """
    start = frame.find(b"\xff\x4f\xff\x51")
    if start < 0 or (start > 0 and frame[start - 4 : start] != b"jp2c"):  # some writers put it in a box of a JP2 file
        return None
    right, bottom, left, top, tile_width, tile_height, _, _, channels = struct.unpack_from(">8IH", frame, start + 8)
    if right * bottom > _MOST_TILES * tile_width * tile_height:
        return None
    return bottom - top, right - left, channels


def _grey(values: NDArray[Any]) -> NDArray[Any]:
    """The one channel; of three equal ones the middle one."""
    if values.ndim == 2:
        return values
    if np.ptp(values.astype(np.int32), axis=2).max() > _SAME_GREY:
        raise LeftOutError(SKIPPED, "is a colour image")
    return values[..., 1]


def _full_range(values: NDArray[Any], given: Format, *, is_native: bool) -> Pixels:
    """Stored values as unsigned ones, moved to the top of uint8 or uint16.

    So an image of 12 bits looks the same to every viewer, no bit is lost, and ``client.images``, which stretches
    images of 16 bits over their own range and takes those of 8 bits as they are, sees the right contrast either way.
    """
    shift = given.high_bit + 1 - given.bits_stored if is_native else 0
    most = (1 << given.bits_stored) - 1
    pixels = (values.astype(np.int32) >> shift) & most
    if given.is_signed:
        pixels ^= 1 << (given.bits_stored - 1)  # the most negative value becomes 0
    if given.photometric == "MONOCHROME1":
        pixels = most - pixels
    if given.bits_stored <= 8:
        return (pixels << (8 - given.bits_stored)).astype(np.uint8)
    return (pixels << (16 - given.bits_stored)).astype(np.uint16)
