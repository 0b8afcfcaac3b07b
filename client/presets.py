"""Which file does a person mean? The one of that path, or the one of that name that comes with this code."""

from __future__ import annotations

from pathlib import Path

from shared.code import ROOT
from shared.errors import ConfigError

TASKS, MAPPINGS, FEATURES = "client/labels/tasks", "client/ingest/mappings", "configs/features"


def find_preset(name: str, folder: str) -> Path:
    """A file by its path, or by its name in one of the folders above.

    Raises:
        ConfigError: there is neither; it lists the names.
    """
    if Path(name).is_file():
        return Path(name)
    known = {file.stem: file for file in sorted((ROOT / folder).glob("*.yaml"))}
    if name not in known:
        rule = "must be a file, or one of those that come with this code"
        raise ConfigError("file", rule, value=name, remedy=f"These are {', '.join(known)}.")
    return known[name]
