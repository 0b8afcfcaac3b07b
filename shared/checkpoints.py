"""How are arrays and settings kept on disk? One file, written whole or not at all, verified when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from shared.errors import CheckpointError
from shared.files import replacing
from shared.weights import Weights


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
