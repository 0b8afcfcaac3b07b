"""Can every scan be read? Each file is decoded once, as training would, and only counts are kept."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from client.check.suppression import Count
from client.check.tables import Tables
from client.images import decode
from shared.site_folder import SiteFolder

READABLE = "readable"
_SIZE = 16  # pixels; the file is decoded whole all the same
_AT_ONCE = 256


def decoding_counts(folder: SiteFolder, tables: Tables, progress: Callable[[int, int], None] | None = None) -> Count:
    """All scans, readable or not, and why not.

    Args:
        progress: is told how many of how many are done.
    """
    images = tables.images.dropna(subset=["path", "sha256"])
    rows = list(zip(images["path"], images["frame"].fillna(0).astype(int), images["sha256"], strict=True))
    reasons: Counter[str] = Counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(rows), _AT_ONCE):
            block = rows[start : start + _AT_ONCE]
            reasons.update(pool.map(lambda row: _reason(folder, *row), block))
            if progress is not None:
                progress(min(start + _AT_ONCE, len(rows)), len(rows))
    counts = tuple(Count(reason or READABLE, count) for reason, count in sorted(reasons.items()))
    return Count("scans", len(rows), groups=(("decoding", counts),))


def _reason(folder: SiteFolder, path: str, frame: int, sha256: str) -> str:
    if not (folder.image_files / path).resolve().is_relative_to(folder.image_files.resolve()):
        return "is outside the folder"
    return decode(folder.image_files / path, frame, sha256, _SIZE, _SIZE)[1]


def unreadable(counts: Count) -> int:
    """How many scans cannot be read."""
    return sum(count.value for _, parts in counts.groups for count in parts if count.name != READABLE)
