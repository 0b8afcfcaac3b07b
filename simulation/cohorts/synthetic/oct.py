"""What does an OCT B-scan through the fovea look like? Layers, foveal pit, choroid and sclera.

Micrometres are counted downwards, millimetres sideways from the fovea towards the nose, as in a right eye.
The nerve fibre layer, the ganglion cell layer and the choroid are the three traits that follow the risk.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from simulation.cohorts.synthetic.ink import Ink, draw, upsample
from simulation.cohorts.synthetic.streams import Integers, Pixels

DEPTH_UM, WIDTH_MM = 1100.0, 6.0
_RPE_UM = 560.0  # depth of the pigment epithelium's lower edge

# Brightness on the display, from the vitreous through the ten layers and the choroid to the sclera.
_BRIGHTNESS = np.array([0.04, 0.72, 0.44, 0.56, 0.24, 0.50, 0.20, 0.42, 0.30, 0.78, 0.42, 0.92, 0.50, 0.34], np.float32)


@dataclass(frozen=True)
class Retina:
    """What stays the same in an eye over the years but says nothing of the risk: n eyes."""

    pit: Pixels  # (n, 2), normal: width and depth
    layers: Pixels  # (n, 4), normal: thickness of the layers that do not follow the risk
    curvature: Pixels  # (n,), normal
    choroid: Pixels  # (n, 22, 26), normal: its vessels
    shadow: Pixels  # (n, 5, 2), uniform: place and darkness of retinal vessels' shadows
    drusen: Pixels  # (n, 4, 3), uniform: place, height, width
    dots: Pixels  # (n, 6, 3), uniform: place, depth, brightness

    def take(self, eyes: Integers) -> Retina:
        """The given eyes."""
        return Retina(*(getattr(self, field.name)[eyes] for field in fields(self)))


def sample_retina(count: int, rng: np.random.Generator) -> Retina:
    """Retinas of ``count`` eyes."""
    normal = ((2,), (4,), (), (22, 26))
    uniform = ((5, 2), (4, 3), (6, 3))
    return Retina(
        *(rng.standard_normal((count, *shape), dtype=np.float32) for shape in normal),
        *(rng.random((count, *shape), dtype=np.float32) for shape in uniform),
    )


def render_oct(traits: Pixels, retina: Retina, height: int, width: int, rng: np.random.Generator) -> Pixels:
    """B-scans of right eyes, brightness about 0 to 1, before the camera.

    Args:
        traits: nerve fibre layer, ganglion cell layer and choroid (B, 3), spread about 1.
        retina: of the B eyes.

    Returns:
        (B, H, W)
    """
    count = len(traits)
    pose = rng.standard_normal((4, count, 1), dtype=np.float32)
    x_mm = (np.arange(width, dtype=np.float32) + 0.5) * WIDTH_MM / width - WIDTH_MM / 2 - 0.12 * pose[0]
    thickness = _thickness(x_mm, traits, retina)
    rpe = _RPE_UM + 25 * pose[1] + 14 * pose[2] * x_mm + (5 + 3 * retina.curvature[:, None]) * x_mm**2
    above = np.cumsum(thickness[:, -2::-1], axis=1)[:, ::-1]
    edges_um = np.concatenate([rpe[:, None] - above, rpe[:, None], rpe[:, None] + thickness[:, -1:]], axis=1)
    edges = (edges_um * (height / DEPTH_UM)).astype(np.float32)

    row = np.arange(height, dtype=np.float32)[:, None] + 1
    image = np.full((count, height, width), _BRIGHTNESS[0], np.float32)
    for index, step in enumerate(np.diff(_BRIGHTNESS)):
        image += step * np.clip(row - edges[:, index, None, :], 0, 1)

    below = np.clip((row - edges[:, -2, None, :]) * (DEPTH_UM / height), 0, None)
    # Two scales whose cells do not coincide: one alone looks like the lattice that it is.
    coarse, fine = retina.choroid[:, :9, :12], retina.choroid
    texture = upsample(coarse, height, width) + upsample(fine, height, width)
    vascular = np.clip(0.45 - 0.7 * texture, 0, 1) * (below > 0)
    vascular *= np.clip(edges[:, -1, None, :] - row + 1, 0, 1)
    image *= (1 - 0.4 * vascular) * np.exp(below * -np.float32(1 / 420))
    beneath = np.clip(row - edges[:, 1, None, :], 0, 1)
    image *= 1 - beneath * _shadows(x_mm, retina)[:, None, :]
    return np.maximum(image, _dots(retina, edges, height, width))


def _thickness(x_mm: Pixels, traits: Pixels, retina: Retina) -> Pixels:
    """Thickness in micrometres of the eleven layers from nerve fibres to pigment epithelium, then of the choroid.

    Args:
        x_mm: (B, W) from the fovea.

    Returns:
        (B, 12, W)
    """
    nerve, ganglion, choroid = (traits[:, index, None] for index in range(3))
    width_mm = 0.36 * np.exp(0.12 * retina.pit[:, 0, None])
    pit = np.exp(-0.5 * (x_mm / width_mm) ** 2) * np.clip(0.95 + 0.04 * retina.pit[:, 1, None], 0.8, 1)
    open_pit = np.exp(-0.5 * (x_mm / (1.7 * width_mm)) ** 2)
    ring = (1 - open_pit) * (0.5 + 0.5 * np.exp(-0.5 * ((np.abs(x_mm) - 1.0) / 0.9) ** 2))
    nasal = 0.3 + 0.9 / (1 + np.exp(-(x_mm - 0.5) / 0.7))
    other = 1 + 0.06 * retina.layers[:, :, None]
    bump = _drusen(x_mm, retina)
    ganglions = np.maximum(92 + 16 * ganglion, 25) * ring
    one = np.ones_like(x_mm)
    layers = [
        np.maximum(46 + 11 * nerve, 10) * nasal * (1 - open_pit),
        0.52 * ganglions + 2,
        0.48 * ganglions + 2,
        38 * other[:, 0] * (1 - 0.9 * pit),
        24 * other[:, 1] * (1 - 0.6 * pit),
        (78 + 22 * pit) * other[:, 2] - 0.8 * bump,
        7 * one,
        (17 + 5 * pit) * one,
        14 * one,
        16 * other[:, 3] * one,
        20 + bump,
        np.maximum(265 + 62 * choroid, 60) * (1 - 0.035 * x_mm - 0.012 * x_mm**2),
    ]
    return np.stack(layers, axis=1).astype(np.float32)


def _drusen(x_mm: Pixels, retina: Retina) -> Pixels:
    """Height of the deposits under the retina in micrometres, (B, W); most eyes have none."""
    place, height, width = (retina.drusen[:, :, index, None] for index in range(3))
    tall = 55 * np.clip(height - 0.8, 0, None) / 0.2
    bumps: Pixels = (tall * np.exp(-0.5 * ((x_mm[:, None] - 5 * (place - 0.5)) / (0.06 + 0.1 * width)) ** 2)).sum(
        axis=1
    )
    return bumps


def _shadows(x_mm: Pixels, retina: Retina) -> Pixels:
    """Part of the light that retinal vessels keep from what lies beneath, (B, W)."""
    place, darkness = retina.shadow[:, :, 0, None], retina.shadow[:, :, 1, None]
    side = np.where(place > 0.5, 1, -1)
    x_vessel = side * (0.8 + 4.4 * np.abs(place - 0.5))
    dips: Pixels = (0.4 * darkness * np.exp(-0.5 * ((x_mm[:, None] - x_vessel) / 0.045) ** 2)).max(axis=1)
    return dips


def _dots(retina: Retina, edges: Pixels, height: int, width: int) -> Pixels:
    """Hyperreflective dots in the middle layers, (B, H, W); many eyes have none."""
    count, dots = retina.dots.shape[:2]
    place, depth, bright = (retina.dots[:, :, index] for index in range(3))
    column = place * (width - 1)
    nearest = np.rint(column).astype(np.int64)
    image = np.repeat(np.arange(count), dots)
    top, bottom = (edges[image, layer, nearest.reshape(-1)] for layer in (2, 6))
    size = np.full(count * dots, max(0.5, 9 * height / DEPTH_UM), np.float32)
    nothing = np.zeros_like(size)
    strength = np.where(bright > 0.6, 0.45 + 0.4 * bright, 0).reshape(-1).astype(np.float32)
    row = top + depth.reshape(-1) * (bottom - top)
    chosen = np.flatnonzero(strength)
    ink = Ink(image, row, column.reshape(-1), nothing + 1, nothing, nothing, size, strength)
    return draw(Ink(*(getattr(ink, field.name)[chosen] for field in fields(Ink))), count, height, width)
