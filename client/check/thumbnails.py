"""What do some scans look like? A few small pictures for the page of a site that asked for them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from client.images import decode
from shared.site_folder import IMAGE_MODALITIES, SiteFolder

_OF_EACH, _HEIGHT, _WIDTH = 6, 120, 120


@dataclass(frozen=True)
class Thumbnail:
    """One scan, small.

    Attributes:
        uri: of its PNG file, which it holds.
    """

    modality: str
    eye: str
    uri: str


def draw_thumbnails(folder: SiteFolder, images: pd.DataFrame) -> tuple[Thumbnail, ...]:
    """Of each modality a few scans, evenly chosen from the index; those that cannot be read are left out."""
    drawn = []
    for modality in IMAGE_MODALITIES:
        rows = images[images["modality"] == modality].dropna(subset=["path", "sha256"])
        chosen = rows.iloc[sorted({len(rows) * place // _OF_EACH for place in range(_OF_EACH)})] if len(rows) else rows
        frames = chosen["frame"].fillna(0).astype(int)
        for path, frame, sha256, eye in zip(chosen["path"], frames, chosen["sha256"], chosen["eye"], strict=True):
            if (folder.image_files / path).resolve().is_relative_to(folder.image_files.resolve()):
                pixels, _ = decode(folder.image_files / path, frame, sha256, _HEIGHT, _WIDTH)
                if pixels is not None:
                    drawn.append(Thumbnail(modality, eye, png_uri(pixels)))
    return tuple(drawn)


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """An image (H, W) as the address of a PNG file that holds it, for a page that needs no other file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
