"""How are arrays and settings kept on disk? One file, written whole or not at all, verified when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from shared.config import Study
from shared.errors import CheckpointError, ConfigError
from shared.files import replacing
from shared.knobs import from_json, to_json
from shared.models.multimodal import MultimodalModel
from shared.statistics import Statistics
from shared.weights import Weights, write_weights


def save_arrays(file: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Write named arrays and JSON facts as safetensors, with a digest over both; no array is copied as a whole."""
    # safetensors reads memory as it lies; ascontiguousarray would turn scalars into vectors.
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    # safetensors sorts; some strategies pair tensors by their place.
    names = json.dumps(list(whole))
    with replacing(file) as draft:
        save_file(whole, draft, {"facts": text, "names": names, "digest": _digest(whole, names + text)})


def load_arrays(file: Path) -> tuple[Weights, dict[str, Any]]:
    """The inverse of ``save_arrays``.

    Raises:
        CheckpointError: no such file, or not the bytes that were written.
    """
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            names = metadata.get("names", "")
            order = json.loads(names) if names else list(opened.keys())
            arrays = {name: opened.get_tensor(name) for name in order}
    except FileNotFoundError:
        raise CheckpointError(str(file), "must exist") from None
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(str(file), "must be a readable checkpoint", value=str(error).splitlines()[0]) from None
    if metadata.get("digest") != _digest(arrays, names + metadata.get("facts", "")):
        remedy = "Take an earlier checkpoint or start the run again."
        raise CheckpointError(str(file), "must be undamaged", remedy=remedy)
    facts: dict[str, Any] = json.loads(metadata["facts"])
    return arrays, facts


def _digest(arrays: Mapping[str, NDArray[Any]], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name}\0{arrays[name].dtype}\0{arrays[name].shape}\0".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def save_model(file: Path, study: Study, statistics: Statistics, weights: Weights) -> None:
    """Write a fine-tuned model with all that is needed to use it."""
    own = {name.removeprefix("model."): array for name, array in weights.items()}
    facts = {"kind": "model", "study": to_json(study), "statistics": to_json(statistics)}
    save_arrays(file, own, facts)


@dataclass(frozen=True)
class SavedModel:
    """A fine-tuned model as it was written: the study that made it, its statistics, and its weights."""

    study: Study
    statistics: Statistics
    weights: Weights


def read_model(file: Path) -> SavedModel:
    """The inverse of ``save_model``, but for the prefix of the weights' names.

    Raises:
        CheckpointError: a damaged file, or one that holds no fine-tuned model.
    """
    weights, facts = load_arrays(file)
    if facts.get("kind") != "model":
        raise CheckpointError(str(file), "must hold a fine-tuned model", remedy="Name a run's model.safetensors.")
    try:
        study, statistics = from_json(Study, facts["study"]), from_json(Statistics, facts["statistics"])
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error.name}", error.rule, value=error.value) from None
    return SavedModel(study, statistics, weights)


def load_model(file: Path) -> tuple[MultimodalModel, Study]:
    """A fine-tuned model, ready to predict, and the study that made it; raises as ``read_model``."""
    saved = read_model(file)
    model = MultimodalModel(saved.study, saved.statistics)
    write_weights(model, saved.weights)
    return model.eval(), saved.study
