"""How do a block's eyes become image files, and what does the index say of them?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shared.site_folder import IR, OCT
from simulation.cohorts.synthetic.block import Block, Plan
from simulation.cohorts.synthetic.device import expose
from simulation.cohorts.synthetic.infrared import FIELD_MM, Fundus, render_infrared, sample_fundus
from simulation.cohorts.synthetic.morphology import EYES, MODALITIES, TRAITS
from simulation.cohorts.synthetic.oct import DEPTH_UM, WIDTH_MM, Retina, render_oct, sample_retina
from simulation.cohorts.synthetic.png import encode
from simulation.cohorts.synthetic.streams import Booleans, Floats, Integers, Pixels, generator, timestamps

_BATCH_PIXELS = 1 << 17  # rendered at once: bounds the memory at any image size, and fits a processor's cache


@dataclass(frozen=True)
class _Scans:
    """The images of a block, (i,) each, ordered by visit, eye and modality."""

    visit: Integers
    eye: Integers  # index into EYES
    modality: Integers  # index into MODALITIES
    paired: Booleans  # whether the other modality was taken of this eye at this visit
    acquired_s: Integers
    quality: Floats  # 0 to 1
    height: int
    width: int


@dataclass(frozen=True)
class _Eyes:
    """Anatomy of both eyes of every patient, right before left."""

    retina: Retina
    fundus: Fundus


def write_images(block: Block, plan: Plan, first: int, files: Path) -> pd.DataFrame:
    """Render and write every image of a block under ``files``; returns the block's rows of the imaging index."""
    rng = generator(plan.seed, block.hospital.name, first, "images")
    count = len(block.patients.risk) * len(EYES)
    eyes = _Eyes(sample_retina(count, rng), sample_fundus(count, rng))
    scans = _sample_scans(block, plan, rng)
    index = _index(block, scans)
    paths = [files / str(path) for path in index["path"]]
    for shard in {path.parent for path in paths}:
        shard.mkdir(parents=True, exist_ok=True)
    digests = [""] * len(paths)
    for chosen, image in _images(block, scans, eyes, rng):
        digests[chosen] = _write(encode(image), paths[chosen])
    return index.assign(sha256=digests)


def _sample_scans(block: Block, plan: Plan, rng: np.random.Generator) -> _Scans:
    imaged = block.morphology.imaged
    visit, eye, modality = np.nonzero(imaged)
    # The last image of a visit is taken at the visit's time, the others just before it.
    elapsed_s = np.cumsum(rng.integers(20, 90, len(visit)))
    last = np.searchsorted(visit, visit, "right") - 1
    return _Scans(
        visit=visit,
        eye=eye,
        modality=modality,
        paired=np.all(imaged, axis=2)[visit, eye],
        acquired_s=block.patients.visit_time_s[visit] - elapsed_s[last] + elapsed_s,
        quality=rng.beta(8, 2, len(visit)),
        height=round(plan.image_height * block.hospital.device.size),
        width=round(plan.image_width * block.hospital.device.size),
    )


def _index(block: Block, scans: _Scans) -> pd.DataFrame:
    """Columns of ``shared.site_folder.IMAGES``, but for the digest."""
    patients = block.patients
    subject = patients.subject_id[patients.visit_patient[scans.visit]]
    number = patients.visit_number[scans.visit]
    eye = [EYES[index] for index in scans.eye]
    modality = [MODALITIES[index] for index in scans.modality]
    pair = [f"{s}-{n}-{e}" for s, n, e in zip(subject, number, eye, strict=True)]
    image = [f"{p}-{m}" for p, m in zip(pair, modality, strict=True)]
    spacing_mm = {
        OCT: [DEPTH_UM / 1000 / scans.height, WIDTH_MM / scans.width],
        IR: [FIELD_MM / scans.width, FIELD_MM / scans.width],
    }
    return pd.DataFrame(
        {
            "image_id": image,
            "subject_id": subject,
            "eye": eye,
            "acquired_at": timestamps(scans.acquired_s),
            "modality": modality,
            "device": block.hospital.device.name,
            "pair_id": [name if paired else None for name, paired in zip(pair, scans.paired, strict=True)],
            "path": [f"{s // 100 % 100:02d}/{i}.png" for s, i in zip(subject, image, strict=True)],
            "frame": 0,
            "height": scans.height,
            "width": scans.width,
            "spacing": [spacing_mm[m] for m in modality],
            "quality": scans.quality,
        }
    )


def _images(
    block: Block, scans: _Scans, eyes: _Eyes, rng: np.random.Generator
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Every image (H, W) with its number among the scans."""
    size = max(1, _BATCH_PIXELS // (scans.height * scans.width))
    for index, modality in enumerate(MODALITIES):
        chosen = np.flatnonzero(scans.modality == index)
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            scene = _scene(block, scans, eyes, modality, batch, rng)
            is_left = scans.eye[batch, None, None] == EYES.index("L")
            mirrored = np.where(is_left, scene[:, :, ::-1], scene)
            images = expose(mirrored, modality, scans.quality[batch], block.hospital.device, rng)
            yield from zip(batch.tolist(), images, strict=True)


def _scene(
    block: Block, scans: _Scans, eyes: _Eyes, modality: str, batch: Integers, rng: np.random.Generator
) -> Pixels:
    """What the camera looks at, as if every eye were a right one: (B, H, W)."""
    visit, eye = scans.visit[batch], scans.eye[batch]
    traits = block.morphology.traits[visit, eye].astype(np.float32)
    traits = traits[:, [trait.modality == modality for trait in TRAITS]]
    which = block.patients.visit_patient[visit] * len(EYES) + eye
    if modality == OCT:
        return render_oct(traits, eyes.retina.take(which), scans.height, scans.width, rng)
    return render_infrared(traits, eyes.fundus.take(which), scans.height, scans.width, rng)


def _write(data: bytes, file: Path) -> str:
    """Write a file; returns the SHA-256 of its bytes."""
    file.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
