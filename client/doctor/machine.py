"""Is the machine fit? The device that site.yaml names, disk, memory, the year, and telemetry switched off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Set
from datetime import UTC, datetime
from pathlib import Path

from client.doctor.finding import Finding, fail, ok, warn

_GIB = 2**30
_LEAST_FREE_BYTES = 2 * _GIB  # checkpoints, logs, messages
_LEAST_MEMORY_BYTES = 2 * _GIB
_CACHE_BYTES_A_SCAN = 224 * 224  # decoded once, at the size of most studies
_CACHES = 3  # sizes that are kept at once, as studies differ
_FIRST_YEAR, _LAST_YEAR = 2025, 2100
# As fedretina.py sets them, for the libraries that read them when they are imported.
_OFF = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def device_findings(wanted: str, available: Set[str]) -> Iterator[Finding]:
    """The device that ``site.yaml`` names."""
    if wanted in available:
        yield ok("device", wanted)
    else:
        fix = "Install the driver and a build of torch for it, or set device: cpu in site.yaml."
        yield fail("device", f"{wanted} is not there; torch sees {', '.join(sorted(available))}", fix)
    faster = sorted(available - {"cpu"})
    if wanted == "cpu" and faster:
        yield warn(
            "device", f"{faster[0]} is there but not used", f"Set device: {faster[0]} in site.yaml, if it may be used."
        )


def thread_findings(threads: int, processors: int) -> Iterator[Finding]:
    """Threads that training would take against the processors that it may use."""
    found = f"{threads} threads on {processors} processors"
    if threads > processors:
        # A container of two processors on a machine of 64: torch counts the machine's.
        fix = f"Set threads: {processors} in site.yaml; several sites on one machine share its processors out."
        yield warn("threads", f"{found} slow each other down many times", fix)
    else:
        yield ok("threads", found)


def disk_findings(free_bytes: int, scans: int, cached_bytes: int) -> Iterator[Finding]:
    """Free disk against what the site's scans take when they are decoded."""
    needed = _LEAST_FREE_BYTES + max(0, _CACHES * scans * _CACHE_BYTES_A_SCAN - cached_bytes)
    found = f"{free_bytes / _GIB:.1f} GiB free"
    if free_bytes < needed:
        fix = "Free disk, or move the site folder to a larger one."
        yield fail("disk", f"{found}, {needed / _GIB:.1f} GiB may be needed for {scans:,} decoded scans", fix)
    else:
        yield ok("disk", found)


def memory_findings(available_bytes: int | None) -> Iterator[Finding]:
    """Memory that is free now; None where the machine does not tell."""
    if available_bytes is None:
        yield ok("memory", "not told by this machine")
    elif available_bytes < _LEAST_MEMORY_BYTES:
        fix = "End other programs, or use a machine with more memory."
        yield warn(
            "memory", f"{available_bytes / _GIB:.1f} GiB available, {_LEAST_MEMORY_BYTES / _GIB:.0f} are advised", fix
        )
    else:
        yield ok("memory", f"{available_bytes / _GIB:.1f} GiB available")


def year_findings(now: datetime) -> Iterator[Finding]:
    """The clock, as far as it can be judged without another."""
    if _FIRST_YEAR <= now.year < _LAST_YEAR:
        yield ok("clock", f"the year is {now.year}")
    else:
        yield fail("clock", f"the year is {now.year}", "Set the clock; a time service such as chrony keeps it.")


def telemetry_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """The variables that keep libraries from calling home."""
    wrong = sorted(name for name, value in _OFF.items() if environment.get(name) != value)
    if wrong:
        unset = " ".join(wrong)
        fix = f"Start the site by the command fedretina, which sets them, after: unset {unset}"
        yield fail("telemetry", f"not switched off by {', '.join(wrong)}", fix)
    else:
        yield ok("telemetry", "off")


def available_devices() -> frozenset[str]:
    """What torch can train on here."""
    import torch

    found = {"cpu"}
    if torch.cuda.is_available():
        found.add("cuda")
    if torch.backends.mps.is_available():
        found.add("mps")
    return frozenset(found)


def look(folder: Path, device: str, threads: int, scans: int) -> Iterator[Finding]:
    """All of this machine, for a site of these settings and so many scans."""
    try:
        yield from device_findings(device, available_devices())
        yield from thread_findings(threads or _default_threads(), _usable_processors())
    except Exception as error:  # torch itself is broken
        yield fail("device", f"torch cannot tell: {type(error).__name__}", "Mend torch first: make setup.")
    cache = folder / "state" / "cache"
    cached = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    yield from disk_findings(shutil.disk_usage(folder).free, scans, cached)
    yield from memory_findings(_available_memory())
    yield from year_findings(datetime.now(UTC))
    yield from telemetry_findings(os.environ)


def _default_threads() -> int:
    import torch

    return torch.get_num_threads()


def _usable_processors(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Those that this process may run on, and fewer where a container's share of time is smaller (cgroup v2)."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed_us, period_us = quota.read_text(encoding="ascii").split()
        return max(1, min(there, round(int(allowed_us) / int(period_us))))
    except (OSError, ValueError, ZeroDivisionError):
        return there  # no share: "max", or no such file


def _available_memory(file: Path = Path("/proc/meminfo")) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in file.read_text(encoding="ascii").splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None  # not Linux
