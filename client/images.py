"""How does a scan on disk become pixels? Each image is decoded once, into one memory-mapped array."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shared.site_folder import SiteFolder

_FORMAT = 1  # raise it when decoding changes, so that old caches are not taken for new ones
_DECODED_AT_ONCE = 256


@dataclass(frozen=True)
class Pixels:
    """Decoded scans of a site.

    Attributes:
        values: uint8 of shape (N, H, W), memory-mapped read-only.
        table: the imaging index of the N scans that could be read, row by row.
        quarantined: ``image_id``, ``path`` and ``reason`` of those that could not.
    """

    values: NDArray[np.uint8]
    table: pd.DataFrame
    quarantined: pd.DataFrame


def open_pixels(folder: SiteFolder, height: int, width: int) -> Pixels:
    """The site's scans at one size, decoded at the first call and whenever a source file changed.

    Two processes may call this at once: each builds a draft, the first to finish renames it into place.
    """
    index = folder.images()
    cache = folder.state / "cache" / f"pixels-{_digest(folder, index, height, width)}"
    if not cache.exists():
        _build(folder, index, height, width, cache)
    values = np.load(cache / "values.npy", mmap_mode="r")
    return Pixels(values, pd.read_parquet(cache / "table.parquet"), pd.read_parquet(cache / "quarantined.parquet"))


def _digest(folder: SiteFolder, index: pd.DataFrame, height: int, width: int) -> str:
    """Names the pixels: by the whole index, the size, and each file's length and time of change."""
    digest = hashlib.sha256(json.dumps([_FORMAT, height, width]).encode())
    for column in index.columns:  # all of them: the table is kept beside the pixels
        digest.update("\0".join(map(str, index[column])).encode())
    for path in index["path"]:
        try:
            status = (folder.image_files / path).stat()
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path}\0absent\n".encode())
    return digest.hexdigest()[:24]


def _build(folder: SiteFolder, index: pd.DataFrame, height: int, width: int, cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=cache.parent))
    try:
        kept, failed, position = [], [], 0
        # At least one row: an empty array cannot be memory-mapped.
        shape = (max(len(index), 1), height, width)
        values = np.lib.format.open_memmap(draft / "values.npy", mode="w+", dtype=np.uint8, shape=shape)
        for row, pixels, reason in _decode_all(folder, index, height, width):
            if pixels is None:
                failed.append(
                    {"image_id": index["image_id"].iloc[row], "path": index["path"].iloc[row], "reason": reason}
                )
                continue
            values[position] = pixels
            kept.append(row)
            position += 1
        values.flush()
        index.iloc[kept].reset_index(drop=True).to_parquet(draft / "table.parquet")
        columns = ["image_id", "path", "reason"]
        pd.DataFrame(failed, columns=columns, dtype=str).to_parquet(draft / "quarantined.parquet")
        try:
            os.rename(draft, cache)
        except OSError:
            if not cache.exists():  # otherwise another process was first with the same pixels
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _remove_stale(cache)


def _remove_stale(cache: Path) -> None:
    """Drop the pixels of this size that an earlier state of the sources had made."""
    shape = np.load(cache / "values.npy", mmap_mode="r").shape[1:]
    for other in cache.parent.glob("pixels-*"):
        try:
            if other != cache and np.load(other / "values.npy", mmap_mode="r").shape[1:] == shape:
                shutil.rmtree(other, ignore_errors=True)
        except (OSError, ValueError):
            shutil.rmtree(other, ignore_errors=True)


def _decode_all(
    folder: SiteFolder, index: pd.DataFrame, height: int, width: int
) -> Iterator[tuple[int, NDArray[np.uint8] | None, str]]:
    """(row, pixels or None, reason) in order; decoding runs on threads, as Pillow leaves the interpreter lock."""
    rows = list(zip(index["path"], index["frame"].fillna(0).astype(int), index["sha256"], strict=True))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(rows), _DECODED_AT_ONCE):
            block = rows[start : start + _DECODED_AT_ONCE]
            decoded = pool.map(lambda row: decode(folder.image_files / row[0], row[1], row[2], height, width), block)
            for offset, (pixels, reason) in enumerate(decoded):
                yield start + offset, pixels, reason


def decode(file: Path, frame: int, sha256: str, height: int, width: int) -> tuple[NDArray[np.uint8] | None, str]:
    """The pixels (H, W) of one scan, or None and why not."""
    try:
        content = file.read_bytes()
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"
    if hashlib.sha256(content).hexdigest() != sha256:
        return None, "has other bytes than when it was imported"
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.seek(frame)
            grey = _eight_bit(image)
            return np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR), dtype=np.uint8), ""
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return None, "is not an image that can be decoded"
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        return None, f"is damaged: {type(error).__name__}"


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 bit and float scans: use their own range
        values = np.asarray(image, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        if not math.isfinite(high - low):
            raise ValueError("a scan must be finite")
        return Image.fromarray(((values - low) * (255.0 / max(high - low, 1e-6))).astype(np.uint8))
    return image if image.mode == "L" else image.convert("L")
