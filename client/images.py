"""How does a scan on disk become pixels? Each image is decoded once, into one memory-mapped array."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from client.png import inflated
from shared.errors import SiteError
from shared.site_folder import SiteFolder

_FORMAT = 3  # raise it when decoding changes, so that old caches are not taken for new ones
_DECODED_TOGETHER = 64


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
    failed = pd.read_parquet(cache / "quarantined.parquet")
    return Pixels(values, index.drop(index=failed.index).reset_index(drop=True), failed.reset_index(drop=True))


def _digest(folder: SiteFolder, index: pd.DataFrame, height: int, width: int) -> str:
    """Names the pixels: by their size, and what the index says of each file, its length and time of change."""
    digest = hashlib.sha256(json.dumps([_FORMAT, height, width]).encode())
    files = os.fspath(folder.image_files)
    for image_id, path, frame, sha256 in _scans(index):
        try:
            status = os.stat(f"{files}/{path}")
            stamp = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            stamp = "absent"
        digest.update(f"{image_id}\0{path}\0{frame}\0{sha256}\0{stamp}\n".encode())
    return digest.hexdigest()[:24]


def _scans(index: pd.DataFrame) -> Iterator[tuple[str, str, int, str]]:
    """Name, path, frame and SHA-256 of each scan, one after another."""
    frames = index["frame"].fillna(0).astype(int)
    return zip(index["image_id"], index["path"], frames, index["sha256"], strict=True)


def _build(folder: SiteFolder, index: pd.DataFrame, height: int, width: int, cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=cache.parent))
    try:
        with _Rows.create(draft / "values.npy", len(index), height, width) as rows:
            reasons = np.array(_decode_into(rows, folder, index), dtype=object)
            kept = np.flatnonzero(reasons == "")
            for place, row in enumerate(kept):
                if place != row:
                    rows.write(place, rows.read(int(row)))
        failed = index.loc[reasons != "", ["image_id", "path"]].astype(str).assign(reason=reasons[reasons != ""])
        failed.to_parquet(draft / "quarantined.parquet")  # with their places in the index
        try:
            os.rename(draft, cache)
        except OSError:
            if not cache.exists():  # otherwise another process was first with the same pixels
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _remove_stale(cache)


@dataclass(frozen=True)
class _Rows:
    """The rows of a ``.npy`` file that is being written, from any thread.

    By calls, not through a memory map: these are cheaper than a page fault for each 4096 bytes, and on a full disk they
    are an error, where the map kills the process.
    """

    handle: int
    start: int
    height: int
    width: int

    @staticmethod
    @contextmanager
    def create(file: Path, rows: int, height: int, width: int) -> Iterator[_Rows]:
        """A file of so many rows, zero until they are written; it is on the disk at the end.

        Raises:
            SiteError: there is no room for it.
        """
        # At least one row: an empty array cannot be memory-mapped.
        shape = (max(rows, 1), height, width)
        start = int(np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape).offset)
        handle = os.open(file, os.O_RDWR)
        try:
            yield _Rows(handle, start, height, width)
            os.fsync(handle)
        except OSError as error:
            remedy = "Make room or mend the disk; what was decoded so far is gone, the scans are as they were."
            raise SiteError("state/cache", "must be writable", value=error.strerror, remedy=remedy) from None
        finally:
            os.close(handle)

    def write(self, row: int, pixels: NDArray[np.uint8]) -> None:
        if os.pwrite(self.handle, np.ascontiguousarray(pixels).data, self._place(row)) != pixels.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read(self, row: int) -> NDArray[np.uint8]:
        content = os.pread(self.handle, self.height * self.width, self._place(row))
        return np.frombuffer(content, np.uint8).reshape(self.height, self.width)

    def _place(self, row: int) -> int:
        return self.start + row * self.height * self.width


def _remove_stale(cache: Path) -> None:
    """Drop the pixels of this size that an earlier state of the sources had made."""
    shape = np.load(cache / "values.npy", mmap_mode="r").shape[1:]
    for other in cache.parent.glob("pixels-*"):
        try:
            if other != cache and np.load(other / "values.npy", mmap_mode="r").shape[1:] == shape:
                shutil.rmtree(other, ignore_errors=True)
        except (OSError, ValueError):
            shutil.rmtree(other, ignore_errors=True)


def _decode_into(rows: _Rows, folder: SiteFolder, index: pd.DataFrame) -> list[str]:
    """Write the pixels of each row of the index in its place; why each could not be, empty where it could.

    Decoding runs on threads, as Pillow leaves the interpreter lock; a thread takes several, as each is soon done.
    """
    files = folder.image_files

    def decode_some(start: int) -> list[str]:
        reasons = []
        some = _scans(index.iloc[start : start + _DECODED_TOGETHER])
        for row, (_, path, frame, sha256) in enumerate(some, start):
            pixels, reason = decode(files / path, frame, sha256, rows.height, rows.width)
            if pixels is not None:
                rows.write(row, pixels)
            reasons.append(reason)
        return reasons

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(chain.from_iterable(pool.map(decode_some, range(0, len(index), _DECODED_TOGETHER))))


def decode(file: Path, frame: int, sha256: str, height: int, width: int) -> tuple[NDArray[np.uint8] | None, str]:
    """The pixels (H, W) of one scan, or None and why not."""
    try:
        content = file.read_bytes()
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"
    if hashlib.sha256(content).hexdigest() != sha256:
        return None, "has other bytes than when it was imported"
    try:
        with Image.open(io.BytesIO(inflated(content))) as image:
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
