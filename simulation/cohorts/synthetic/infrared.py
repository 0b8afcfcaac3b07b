"""What does an infrared reflectance scan of the fundus look like? Disc, fovea, arterioles and venules.

Millimetres are in the frame of a right eye: x grows to the right, towards the nose; y grows downwards.
The arteriole-to-venule ratio and the tortuosity are the two traits that follow the risk.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from simulation.cohorts.synthetic.ink import Ink, draw, upsample
from simulation.cohorts.synthetic.streams import Booleans, Integers, Pixels

FIELD_MM = 9.6  # width of the field of view

# The main vessels: an arteriole and a venule in each of the arcades superior/inferior temporal/nasal.
_SIDE = np.array([-1, -1, 1, 1, -1, -1, 1, 1], np.float32)  # of y: up or down
_REACH = np.array([-7.0, -7.4, -7.0, -7.4, 2.4, 2.8, 2.4, 2.8], np.float32)  # mm
_RISE = np.array([2.75, 3.35, 2.75, 3.35, 3.9, 3.4, 3.9, 3.4], np.float32)  # mm
_LEAVES = np.array([-0.14, -0.02, -0.14, -0.02, 0.22, 0.1, 0.22, 0.1], np.float32)  # mm from the middle of the disc
_TURN = np.array([1.95, 1.95, 1.95, 1.95, 1.2, 1.2, 1.2, 1.2], np.float32)  # rad
_POWER = np.array([1.6, 1.6, 1.6, 1.6, 1.2, 1.2, 1.2, 1.2], np.float32)
_VENULE = np.array([False, True] * 4)
_LENGTH = np.where(_REACH < 0, 9.0, 4.6).astype(np.float32)  # mm, roughly
# Their branches: from which vessel, how far along it, and to which hand.
_PARENT = np.repeat(np.arange(8), [5, 5, 5, 5, 2, 2, 2, 2])
_START = np.array([0.12, 0.28, 0.43, 0.57, 0.72] * 4 + [0.3, 0.6] * 4, np.float32)
_HAND = np.array([1, -1, 1, -1, 1] * 4 + [1, -1] * 4, np.float32)
_VENULE_MM = 0.19  # calibre of a venule at the disc


@dataclass(frozen=True)
class Fundus:
    """What stays the same in an eye over the years but says nothing of the risk: n eyes, standard normal values."""

    disc: Pixels  # (n, 3): position x, y and size
    fovea: Pixels  # (n, 2)
    calibre: Pixels  # (n,)
    course: Pixels  # (n, 8, 4): of the main vessels
    branching: Pixels  # (n, 28, 5)
    choroid: Pixels  # (n, 14, 14): mottling

    def take(self, eyes: Integers) -> Fundus:
        """The given eyes."""
        return Fundus(*(getattr(self, field.name)[eyes] for field in fields(self)))


def sample_fundus(count: int, rng: np.random.Generator) -> Fundus:
    """Fundi of ``count`` eyes."""
    shapes = ((3,), (2,), (), (len(_SIDE), 4), (len(_PARENT), 5), (14, 14))
    return Fundus(*(rng.standard_normal((count, *shape), dtype=np.float32) for shape in shapes))


def render_infrared(traits: Pixels, fundus: Fundus, height: int, width: int, rng: np.random.Generator) -> Pixels:
    """Scans of right eyes, brightness about 0 to 1, before the camera.

    Args:
        traits: arteriole-to-venule ratio and tortuosity (B, 2), spread about 1.
        fundus: of the B eyes.

    Returns:
        (B, H, W)
    """
    count = len(traits)
    gaze = rng.normal(0, 0.15, (2, count, 1)).astype(np.float32)
    x = (np.arange(width, dtype=np.float32) + 0.5) * FIELD_MM / width - FIELD_MM / 2 - gaze[0]
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) * FIELD_MM / width - gaze[1]
    disc_x, disc_y = 2.85 + 0.12 * fundus.disc[:, 0, None], 0.12 * fundus.disc[:, 1, None]
    fovea_x, fovea_y = -1.35 + 0.12 * fundus.fovea[:, 0, None], 0.35 + 0.12 * fundus.fovea[:, 1, None]

    image = 0.55 + 0.04 * upsample(fundus.choroid, height, width)
    image -= 0.17 * _spot(x - fovea_x, y - fovea_y, 0.42) + 0.05 * _spot(x - fovea_x, y - fovea_y, 1.3)
    radius = 0.82 + 0.06 * fundus.disc[:, 2, None]
    across, down = (x - disc_x) / radius, (y - disc_y) / (1.08 * radius)
    squared = across[:, None, :] ** 2 + down[:, :, None] ** 2
    image += 0.24 / (1 + np.exp(np.clip((squared - 1) * 7, -30, 30))) + 0.12 * np.exp(-squared * 5)
    origin = np.stack([disc_x, disc_y])
    vessels = _vessels(traits, fundus, origin, gaze, width / FIELD_MM, height, width)
    image *= 1 - vessels
    falloff = (x / FIELD_MM)[:, None, :] ** 2 + (y / FIELD_MM)[:, :, None] ** 2
    darkened: Pixels = image * (1 - 0.75 * falloff)
    return darkened


def _spot(x: Pixels, y: Pixels, radius: float) -> Pixels:
    """A Gaussian blob of (B, W) by (B, H) offsets: (B, H, W)."""
    blob: Pixels = np.exp(-0.5 * (y / radius) ** 2)[:, :, None] * np.exp(-0.5 * (x / radius) ** 2)[:, None, :]
    return blob


def _vessels(
    traits: Pixels,
    fundus: Fundus,
    origin: Pixels,
    gaze: Pixels,
    scale: float,
    height: int,
    width: int,
) -> Pixels:
    """Part of the light that the vessels absorb: (B, H, W)."""
    venule_mm = _VENULE_MM * np.exp(0.05 * fundus.calibre)
    arteriole_mm = venule_mm * np.clip(0.70 + 0.11 * traits[:, 0], 0.35, 1.1)
    wave_mm = (0.06 * np.exp(0.5 * traits[:, 1]))[:, None, None]
    spacing_mm = max(0.75 / scale, 0.4 * _VENULE_MM)
    calibre = np.where(_VENULE, venule_mm[:, None], arteriole_mm[:, None])[:, :, None]

    along = np.linspace(0, 1, int(9 / spacing_mm), dtype=np.float32)
    x, y = _arcades(fundus, origin, wave_mm, along)
    thickness = calibre * (1 - 0.5 * along)
    mains = _ink(x + gaze[0][:, :, None], y + gaze[1][:, :, None], thickness, _VENULE, scale, height, width)

    start = np.clip(_START + 0.035 * fundus.branching[:, :, 0], 0.04, 0.9)
    at = (start * (len(along) - 1)).astype(np.int64)
    rows = np.arange(len(x))[:, None]
    here, ahead = (rows, _PARENT, at), (rows, _PARENT, at + 1)
    heading = np.arctan2(y[ahead] - y[here], x[ahead] - x[here])
    forth = np.linspace(0, 1, int(2.4 / spacing_mm), dtype=np.float32)
    branch_x, branch_y = _branches(fundus.branching, heading, wave_mm, forth)
    branch_x += x[here][:, :, None] + gaze[0][:, :, None]
    branch_y += y[here][:, :, None] + gaze[1][:, :, None]
    thickness = 0.62 * thickness[here][:, :, None] * (1 - 0.4 * forth)
    twigs = _ink(branch_x, branch_y, thickness, _VENULE[_PARENT], scale, height, width)
    ink = Ink(*(np.concatenate([getattr(mains, f.name), getattr(twigs, f.name)]) for f in fields(Ink)))
    return draw(ink, len(x), height, width)


def _arcades(fundus: Fundus, origin: Pixels, wave_mm: Pixels, along: Pixels) -> tuple[Pixels, Pixels]:
    """Courses of the main vessels in mm at ``along`` (p,) from the disc: x and y, (B, 8, p)."""
    course = fundus.course[..., None]
    reach, rise = _REACH[:, None] * (1 + 0.05 * course[:, :, 0]), _RISE[:, None] * (1 + 0.06 * course[:, :, 1])
    x = origin[0][:, :, None] + _LEAVES[:, None] + reach * along ** _POWER[:, None]
    y = origin[1][:, :, None] + (_SIDE[:, None] * rise) * np.sin(_TURN[:, None] * along**0.8)
    dx, dy = np.gradient(x, axis=-1), np.gradient(y, axis=-1)
    length = np.sqrt(dx * dx + dy * dy) + 1e-6
    turns = 2 * np.pi * _LENGTH[:, None] * along
    sway = np.sin(turns / 2.1 + 6 * course[:, :, 2]) + 0.7 * np.sin(turns / 1.2 + 6 * course[:, :, 3])
    sway *= wave_mm * np.minimum(1, 6 * along)
    return x - sway * dy / length, y + sway * dx / length


def _branches(branching: Pixels, heading: Pixels, wave_mm: Pixels, forth: Pixels) -> tuple[Pixels, Pixels]:
    """Courses of the branches in mm from where they leave: x and y, (B, 28, q)."""
    angle = _HAND * (0.75 + 0.15 * branching[:, :, 1])
    length = (1.7 * np.exp(0.3 * np.clip(branching[:, :, 2], -2, 1.5)))[:, :, None]
    curl = (-0.35 * _HAND + 0.35 * branching[:, :, 3])[:, :, None]
    wave_number = 2 * np.pi / 1.2  # rad/mm
    sway = 0.7 * wave_mm * wave_number * np.cos(wave_number * length * forth + 6 * branching[:, :, 4, None])
    direction = (heading + angle)[:, :, None] + curl * forth + sway
    step = length / len(forth)
    return np.cumsum(np.cos(direction) * step, axis=-1), np.cumsum(np.sin(direction) * step, axis=-1)


def _ink(x: Pixels, y: Pixels, thickness: Pixels, venule: Booleans, scale: float, height: int, width: int) -> Ink:
    """Strokes between the points of curves (B, curves, p) given in mm; ``scale`` is pixels per mm."""
    dx, dy = np.diff(x, axis=-1) * scale, np.diff(y, axis=-1) * scale
    length = np.sqrt(dx * dx + dy * dy) + np.float32(1e-6)
    shape = length.shape
    strength = np.where(venule, np.float32(0.46), np.float32(0.36))[:, None]
    columns = (
        np.broadcast_to(np.arange(shape[0])[:, None, None], shape),
        (y[:, :, 1:] + y[:, :, :-1]) * (scale / 2) + (height - 1) / 2,
        (x[:, :, 1:] + x[:, :, :-1]) * (scale / 2) + (width - 1) / 2,
        dy / length,
        dx / length,
        length / 2,
        np.broadcast_to(thickness[:, :, 1:] * (scale / 2), shape),
        np.broadcast_to(strength, shape),
    )
    return Ink(columns[0].reshape(-1), *(column.reshape(-1).astype(np.float32) for column in columns[1:]))
