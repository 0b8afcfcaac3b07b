"""What does a camera do to a scene: exposure, speckle, blur, noise, contrast, eight bits?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulation.cohorts.synthetic.hospitals import Device
from simulation.cohorts.synthetic.streams import Floats, Pixels

_SPECKLE = {"OCT": 0.28, "IR": 0.05}  # standard deviation over mean


def expose(
    scene: Pixels, modality: str, quality: Floats, device: Device, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Images (B, H, W) of scenes (B, H, W) with brightness about 0 to 1; ``quality`` (B,) 0 to 1 steadies the noise."""
    noise = device.noise * (1.6 - quality).astype(np.float32)[:, None, None]
    exposure = rng.normal(device.gain, 0.04, (len(scene), 1, 1)).astype(np.float32)
    grain = rng.standard_normal(scene.shape, dtype=np.float32)
    image = scene * (1 + _SPECKLE[modality] * grain)
    image = _blur(image, device.blur)
    image += noise * rng.standard_normal(scene.shape, dtype=np.float32)
    np.clip(image * exposure, 0, 1, out=image)
    if device.gamma != 1:
        np.power(image, np.float32(device.gamma), out=image)
    pixels: NDArray[np.uint8] = (image * 255 + 0.5).astype(np.uint8)
    return pixels


def _blur(image: Pixels, sd: float) -> Pixels:
    """Gaussian blur of standard deviation ``sd`` pixels, up to about 0.8, by five taps along each axis."""
    weights = np.exp(-0.5 * (np.arange(3) / sd) ** 2)
    weights = (weights / (weights[0] + 2 * weights[1:].sum())).astype(np.float32)
    for axis in (1, 2):
        margin = [(0, 0), (0, 0), (0, 0)]
        margin[axis] = (2, 2)
        padded, size = np.pad(image, margin, mode="edge"), image.shape[axis]
        views = [np.moveaxis(np.moveaxis(padded, axis, 0)[start : start + size], 0, axis) for start in range(5)]
        image = weights[0] * views[2] + weights[1] * (views[1] + views[3]) + weights[2] * (views[0] + views[4])
    return image
