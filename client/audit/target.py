"""Which model does a person mean? A file, the folder of a run, or that of one of its arms."""

from __future__ import annotations

from pathlib import Path

from shared.errors import CheckpointError

MODEL = "model.safetensors"
_FIRST = (MODEL, f"arms/federated/multimodal/{MODEL}")


def find_model(path: Path) -> Path:
    """The model's file.

    Raises:
        CheckpointError: there is none, or there are several and none of them is the run's own.
    """
    if path.is_file():
        return path
    for name in _FIRST:
        if (path / name).is_file():
            return path / name
    found = sorted(path.rglob(MODEL))
    if len(found) == 1:
        return found[0]
    if not found:
        remedy = "Name a run's folder, or the file of a model."
        raise CheckpointError(str(path), f"must hold a {MODEL}", remedy=remedy)
    listed = ", ".join(str(file.relative_to(path)) for file in found[:5])
    raise CheckpointError(str(path), f"must hold one {MODEL}", value=len(found), remedy=f"Name one, such as {listed}.")
