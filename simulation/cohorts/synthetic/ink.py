"""How are thin lines and dots drawn on many images at once, with edges true below a pixel?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulation.cohorts.synthetic.streams import Integers, Pixels

_MOST_STAMPED = 1 << 15  # pixels touched in one step: what a processor's cache holds


@dataclass(frozen=True)
class Ink:
    """s short strokes, (s,) each; lengths in pixels. A dot is a stroke of no length."""

    image: Integers
    row: Pixels  # of the middle
    column: Pixels
    along_row: Pixels  # unit vector of the direction
    along_column: Pixels
    half_length: Pixels
    half_width: Pixels
    strength: Pixels


def draw(ink: Ink, images: int, height: int, width: int) -> Pixels:
    """Strength of the strongest stroke over each pixel times the part of the pixel it covers: (B, H, W)."""
    reach = int(np.ceil((ink.half_length + ink.half_width).max(initial=0) + 0.5))
    margin = 2 * reach
    canvas = np.zeros((images, height + 2 * margin, width + 2 * margin), np.float32)
    top, left = np.floor(ink.row), np.floor(ink.column)
    near = (top >= -reach) & (top < height + reach) & (left >= -reach) & (left < width + reach)
    kept = np.flatnonzero(near)
    step = max(1, _MOST_STAMPED // (2 * reach + 1) ** 2)
    for start in range(0, len(kept), step):
        _stamp(canvas, ink, kept[start : start + step], reach, margin)
    return canvas[:, margin : margin + height, margin : margin + width]


def _stamp(canvas: Pixels, ink: Ink, chosen: Integers, reach: int, margin: int) -> None:
    """Draw the chosen strokes onto the canvas."""
    rows, columns = canvas.shape[1:]
    row, column = ink.row[chosen], ink.column[chosen]
    top, left = np.floor(row), np.floor(column)
    offsets = np.arange(-reach, reach + 1, dtype=np.float32)
    down = (offsets + (top - row)[:, None])[:, :, None]
    right = (offsets + (left - column)[:, None])[:, None, :]
    along_row, along_column = ink.along_row[chosen, None, None], ink.along_column[chosen, None, None]
    half_width = ink.half_width[chosen, None, None]
    across = down * along_column - right * along_row
    beyond = np.maximum(np.abs(down * along_row + right * along_column) - ink.half_length[chosen, None, None], 0)
    distance = np.sqrt(across * across + beyond * beyond)
    # The pixel is the interval of width 1 around ``distance``; the stroke is the one around 0.
    covered = np.minimum(distance + 0.5, half_width) - np.maximum(distance - 0.5, -half_width)
    value = np.maximum(covered, 0) * ink.strength[chosen, None, None]
    corner = (ink.image[chosen] * rows + top.astype(np.int64) + margin) * columns + left.astype(np.int64) + margin
    shift = np.arange(-reach, reach + 1)
    pixel = corner[:, None, None] + shift[:, None] * columns + shift
    np.maximum.at(canvas.reshape(-1), pixel.reshape(-1), value.reshape(-1))


def upsample(field: Pixels, height: int, width: int) -> Pixels:
    """A coarse field (B, h, w) smoothly interpolated to (B, H, W)."""
    for axis, size in ((1, height), (2, width)):
        place = np.linspace(0, field.shape[axis] - 1.001, size, dtype=np.float32)
        low = place.astype(np.int64)
        part = place - low
        part = part * part * (3 - 2 * part)
        part = part[:, None] if axis == 1 else part
        first = np.take(field, low, axis=axis)
        field = first + part * (np.take(field, low + 1, axis=axis) - first)
    return field
