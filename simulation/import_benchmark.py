"""What does an import cost? The rate at which PNG pairs are imported and stored, over that of decoding them at all.

Alone is Pillow that decodes and resizes the files of the export on as many threads, keeping nothing. Ours is the import
of a table of those files, with its checksums, pseudonyms, pairs and copies, and the store's pixels after it. Runs
alternate, since only the ratio of neighbours means something. The scans are synthetic, at the size of a Spectralis
B-scan, and encoded as devices do. Memory is the largest resident set of a process that imports, and then stores, a
quarter of the pairs or all of them: an import's must not grow, while the store has the table of scans in memory.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageFilter
from rich.console import Console

from client.images import open_pixels
from client.ingest.export import ScanOptions
from client.ingest.images import IMAGE_FILES
from client.ingest.progress import Progress
from client.ingest.scans import ScanSummary, import_scans
from shared.errors import FedretinaError
from shared.memory import keep_freed
from shared.site_folder import IR, OCT, SiteFolder
from simulation.cohorts.synthetic.block import Plan, sample_block
from simulation.cohorts.synthetic.hospitals import hospitals
from simulation.cohorts.synthetic.images import write_images

_HEIGHT, _WIDTH, _SIZE = 496, 512, 224
_DISTINCT = 24  # patients whose scans are drawn; the files of the export are copies of them
_BLUR = 0.5  # pixels: real B-scans, saved as PNG, have 0.62 bytes a pixel, these then have 0.65
_AT_ONCE = 256
_LEAST_RATIO, _MOST_BYTES = 0.85, 1.5e9
_MOST_GROWTH = 1.05  # of an import's memory, from a quarter of the pairs to all: the allocator scatters by some MB
_MAPPING = """
path: path
patient: patient
eye: eye
acquired_at: acquired_at
modality: modality
device: device
separator: ","
"""


class BenchmarkError(FedretinaError):
    """A run that did not do what is measured."""


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when the level is reached."""
    parser = argparse.ArgumentParser(prog="python -m simulation.import_benchmark", description=__doc__)
    parser.add_argument("--pairs", type=int, default=10_000, help="pairs of an OCT and an infrared scan")
    parser.add_argument("--runs", type=int, default=3, help="interleaved runs of each way")
    parser.add_argument("--disk", type=Path, default=Path(), help="folder in which the export and the site are written")
    parser.add_argument("--import-only", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    keep_freed()  # as every command does
    if chosen.import_only:
        _import(chosen.import_only / "export", chosen.import_only / "site")
        print(_own_peak_bytes())
        open_pixels(SiteFolder(chosen.import_only / "site"), _SIZE, _SIZE)
        print(_own_peak_bytes())
        return 0
    with TemporaryDirectory(prefix=".import-benchmark-", dir=chosen.disk) as disk:
        return measure(Path(disk), chosen.pairs, chosen.runs, Console())


def measure(disk: Path, pairs: int, runs: int, console: Console) -> int:
    """Print ratio and memory; 0 when both are as required."""
    quarter, whole = disk / "quarter", disk / "whole"
    for folder, count in ((quarter, max(pairs // 4, 1)), (whole, pairs)):
        write_export(folder / "export", count, disk / "drawn")
    files = sorted((whole / "export").rglob("*.png"))
    mean_bytes = sum(file.stat().st_size for file in files) / len(files)
    threads = os.cpu_count() or 1
    console.print(f"{pairs} pairs, {_HEIGHT} x {_WIDTH}, {mean_bytes:.0f} bytes a file, {threads} threads")
    console.print(" run  Pillow alone s  import s  store s  ratio of rates  of processor times")
    ratios = []
    for run in range(1, runs + 1):
        alone = _timed(partial(decode_alone, files, threads))
        # The sites stay until the end: a file system is slow to make files just after many were deleted.
        site = new_site(disk / f"site-{run}")
        ours = _timed(partial(_import_all, whole / "export", site, pairs))
        store = _timed(partial(open_pixels, SiteFolder(site), _SIZE, _SIZE))
        ratios.append(alone.wall_s / (ours.wall_s + store.wall_s))
        of_processor = alone.processor_s / (ours.processor_s + store.processor_s)
        seconds = f"{alone.wall_s:>14.2f}  {ours.wall_s:>8.2f}  {store.wall_s:>7.2f}"
        console.print(f"{run:>4}  {seconds}  {ratios[-1]:>14.3f}  {of_processor:>18.3f}", highlight=False)
    (first, _), (last, stored) = (peak_bytes(folder) for folder in (quarter, whole))
    reached = median(ratios) >= _LEAST_RATIO and stored < _MOST_BYTES and last <= _MOST_GROWTH * first
    spread = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    first_mb, last_mb, stored_mb = (f"{peak / 1e6:.0f} MB" for peak in (first, last, stored))
    console.print(
        f"ratio median {spread}, at least {_LEAST_RATIO}; peak memory of the import {first_mb} at {max(pairs // 4, 1)} "
        f"pairs, {last_mb} at {pairs}, {_MOST_GROWTH} times as much at most; {stored_mb} with the store, "
        f"below {_MOST_BYTES / 1e6:.0f} MB: {'reached' if reached else 'not reached'}",
        soft_wrap=True,
        highlight=False,
    )
    return 0 if reached else 1


def decode_alone(files: list[Path], threads: int) -> None:
    """Decode and resize with Pillow; nothing is kept."""
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), _AT_ONCE):
            for _ in pool.map(_decode, files[start : start + _AT_ONCE]):
                pass


def _decode(file: Path) -> None:
    with Image.open(file) as image:
        np.asarray(image.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR))


def _import(export: Path, site: Path) -> ScanSummary:
    mapping = export.parent / "mapping.yaml"
    mapping.write_text(_MAPPING)
    with open(os.devnull, "w") as nowhere:
        progress = Progress("files", Console(file=nowhere))
        return import_scans(site, export, IMAGE_FILES, "images", mapping, ScanOptions(), progress)


def _import_all(export: Path, site: Path, pairs: int) -> None:
    """Raises ``BenchmarkError`` when not every scan is imported and paired."""
    summary = _import(export, site)
    if (summary.scans.imported, summary.pairs) != (2 * pairs, pairs):
        found = f"{summary.scans.imported} scans, {summary.pairs} pairs"
        raise BenchmarkError("import", f"must take all of {pairs} pairs", value=found)


def peak_bytes(folder: Path) -> tuple[int, int]:
    """The largest resident set of a process that imports one export into a new site, before and after the store."""
    new_site(folder / "site")
    command = [sys.executable, "-m", "simulation.import_benchmark", "--import-only", str(folder)]
    imported, stored = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(imported), int(stored)


def _own_peak_bytes() -> int:
    """Of this process alone: what getrusage tells begins with the size of the process that started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise BenchmarkError("/proc/self/status", "must tell the peak memory of a process")
    return int(found[1]) * 1024


def new_site(folder: Path) -> Path:
    """An empty site folder."""
    folder.mkdir()
    (folder / "dataset.yaml").write_text("site: benchmark\n")
    return folder


def write_export(export: Path, pairs: int, drawn: Path) -> None:
    """A folder of PNG files with a table of them; one visit of one eye a pair."""
    scans = {modality: sorted(drawn.glob(f"{modality}/*.png")) for modality in (OCT, IR)}
    if not scans[OCT]:
        _draw(drawn)
        return write_export(export, pairs, drawn)
    export.mkdir(parents=True)
    with (export / "scans.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "patient", "eye", "acquired_at", "modality", "device"])
        for pair in range(pairs):
            taken = datetime(2020, 1, 1) + timedelta(hours=pair)
            (export / f"{pair // 500:03d}").mkdir(exist_ok=True)
            for modality in (OCT, IR):
                path = f"{pair // 500:03d}/{pair:06d}-{modality}.png"
                shutil.copyfile(scans[modality][pair % len(scans[modality])], export / path)
                table.writerow([path, pair // 4, "OD", taken.isoformat(), modality, "A"])
    return None


def _draw(folder: Path) -> None:
    """Scans as the synthetic cohort has them, encoded with filters as devices do."""
    [place, *_] = hospitals(2, 0)
    place = replace(place, device=replace(place.device, size=1.0))
    plan = Plan(0, 1.0, 1.0, 365, _HEIGHT, _WIDTH)
    raw = folder / "raw"
    table = write_images(sample_block(plan, place, 0, _DISTINCT), plan, 0, raw)
    for modality, path in zip(table["modality"], table["path"], strict=True):
        (folder / modality).mkdir(parents=True, exist_ok=True)
        scan = Image.open(raw / path).filter(ImageFilter.GaussianBlur(_BLUR))
        scan.save(folder / modality / Path(path).name)
    shutil.rmtree(raw)


@dataclass(frozen=True)
class _Times:
    wall_s: float
    processor_s: float  # of all threads; on a machine that does other work as well it scatters less


def _timed(run: Callable[[], object]) -> _Times:
    gc.collect()
    wall_s, processor_s = time.perf_counter(), time.process_time()
    run()
    return _Times(time.perf_counter() - wall_s, time.process_time() - processor_s)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
