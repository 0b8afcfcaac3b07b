"""Which clinical inputs does a study name? A file of ``configs/features``, for a site that prepares for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from shared.config import Features
from shared.errors import ConfigError
from shared.knobs import load

STUDY_FEATURES = Path(__file__).parents[1] / "configs" / "features" / "retstroke.yaml"


def read_features(file: Path | None = None) -> Features:
    """A study's feature list from a preset of ``configs/features`` or a file like it; None: the reproduced study's.

    Raises:
        ConfigError: no such file, or not a feature list.
    """
    file = file or STUDY_FEATURES
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(str(file), "must be a feature list in YAML", value=type(error).__name__) from None
    if not isinstance(data, Mapping):
        raise ConfigError(str(file), "must be a feature list in YAML")
    return load(
        Features, {name: value for name, value in data.items() if name != "defaults"}, "features."
    )  # Hydra's own
