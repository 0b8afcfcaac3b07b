"""Is what is installed what fedretina was tested with? Python, the pinned packages, torch and its companions."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from client.doctor.finding import Finding, fail, ok, warn
from shared.code import ROOT

_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;#]+)\s*(?:;\s*(.*\S))?")
_INSTALL = "Install what the lock names: make setup, in the folder of fedretina."


def python_findings(found: tuple[int, int], needed: tuple[int, int]) -> Iterator[Finding]:
    """Python's version."""
    has, wants = ".".join(map(str, found)), ".".join(map(str, needed))
    if found < needed:
        yield fail("Python", f"{has}, but {wants} or later is needed", f"Install Python {wants}, then: make setup.")
    else:
        yield ok("Python", has)


def package_findings(
    direct: Mapping[str, str], locked: Mapping[str, str], installed: Mapping[str, str | None]
) -> Iterator[Finding]:
    """Versions of packages against those that were tested.

    Args:
        direct: what the project itself names, which must be just that version; ``locked``: all others.
        installed: version by package; None where it is not there.
    """
    absent = sorted(name for name in direct if installed.get(name) is None)
    if absent:
        yield fail("packages", f"not installed: {', '.join(absent)}", _INSTALL)
    other = sorted(name for name, wanted in direct.items() if not _agree(installed.get(name), wanted))
    if other:
        told = ", ".join(f"{name} {installed[name]} (tested: {direct[name]})" for name in other)
        yield fail("packages", f"other versions than tested: {told}", _INSTALL)
    rest = {name: wanted for name, wanted in locked.items() if name not in direct}
    missing = sorted(name for name in rest if installed.get(name) is None)
    drifted = sorted(name for name, wanted in rest.items() if not _agree(installed.get(name), wanted))
    if missing or drifted:
        names = [*(f"{name} is missing" for name in missing), *(f"{name} {installed[name]}" for name in drifted)]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        yield warn("packages", f"indirect ones differ from the lock: {', '.join(names[:5])}{more}", _INSTALL)
    if not (absent or other or missing or drifted):
        yield ok("packages", f"all {len(set(direct) | set(locked))} as in requirements.lock")


def _agree(found: str | None, wanted: str) -> bool:
    """A local build such as 2.13.0+cpu counts as its release."""
    return found is None or found.partition("+")[0] == wanted.partition("+")[0]


def torch_findings() -> Iterator[Finding]:
    """Whether torch and timm can be imported, with the stand-in for torchvision's operators where it is needed."""
    try:
        import torch

        from shared.models.torchvision_shim import ensure_torchvision

        ensure_torchvision()
        import timm
    except Exception as error:  # whatever a broken binary raises
        yield fail(
            "torch", f"cannot be imported: {type(error).__name__}", f"{_INSTALL} README.md says where torch is from."
        )
    else:
        yield ok("torch", f"{torch.__version__} with timm {timm.__version__}")


def pins(text: str) -> dict[str, str]:
    """Version by package of lines such as ``name[extra]==1.2``; lines for another kind of machine are left out."""
    found = {}
    for line in text.splitlines():
        match = _PIN.match(line.strip())
        if match and not match[3]:  # whoever has a marker may be absent here
            found[_normal(match[1])] = match[2]
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def look() -> Iterator[Finding]:
    """All of this machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    major, minor = re.findall(r"\d+", project["requires-python"])[:2]
    yield from python_findings(sys.version_info[:2], (int(major), int(minor)))
    direct, locked = pins("\n".join(project["dependencies"])), pins(_read(ROOT / "requirements.lock"))
    yield from package_findings(direct, locked, {name: _installed(name) for name in {*direct, *locked}})
    yield from torch_findings()


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
