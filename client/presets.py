"""Which file does a person mean? The one of that path, or the one of that name that comes with this code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.code import ROOT
from shared.errors import ConfigError


@dataclass(frozen=True)
class Presets:
    """Files of one kind that come with this code.

    Attributes:
        option: by which commands ask for one of them.
        folder: where they lie.
    """

    option: str
    folder: str


TASKS = Presets("--task", "client/labels/tasks")
MAPPINGS = Presets("--mapping", "client/ingest/mappings")
FEATURES = Presets("--features", "configs/features")


def find_preset(name: str, presets: Presets) -> Path:
    """A file by its path, or by its name among the presets.

    Raises:
        ConfigError: there is neither; it names the option and lists the presets.
    """
    if Path(name).is_file():
        return Path(name)
    known = {file.stem: file for file in sorted((ROOT / presets.folder).glob("*.yaml"))}
    if name not in known:
        rule = f"must be a file, or one of those that come with fedretina: {', '.join(known)}"
        raise ConfigError(presets.option, rule, value=name, remedy="Look at the path, or at the spelling of the name.")
    return known[name]
