"""How does a local weights file start an image encoder?

Reads safetensors, or a .pth that torch can load without running code: plain state dicts, and checkpoints such as
RETFound's that keep theirs under ``model`` beside the argparse namespace of the run. Or the ``model.safetensors`` of an
earlier study, of which the encoder of the same modality is taken.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.errors import ConfigError

_WRAPPERS = ("model", "state_dict", "teacher", "student")
_PREFIXES = ("module.", "backbone.", "encoder.", "model.")
_HEADS = ("head.", "fc.", "classifier.", "decoder", "mask_token", "fc_norm.", "global_pool.")


def start_encoder(encoder: nn.Module, file: Path, modality: str) -> None:
    """Copy a file's weights into an encoder, in place.

    RGB stems are summed to one channel, position embeddings are resampled to the encoder's grid, heads are left out.

    Args:
        encoder: a timm model.
        modality: ``oct`` or ``ir``.

    Raises:
        ConfigError: no such file, a file that would run code, or weights of another architecture.
    """
    name = f"model.image.weights.{modality}"
    state = _adapt(_strip(_of_modality(_read(file, name), modality)), encoder)
    own = encoder.state_dict()
    missing = [key for key in own if key not in state and not key.startswith(_HEADS)]
    if missing:
        remedy = f"{len(missing)} of {len(own)} tensors are not in the file, such as {missing[0]}."
        raise ConfigError(name, "must hold weights of model.image.name", value=str(file), remedy=remedy)
    for key, tensor in own.items():
        if key in state and state[key].shape != tensor.shape:
            remedy = f"{key} is {tuple(state[key].shape)} there and {tuple(tensor.shape)} here."
            raise ConfigError(name, "must hold weights of model.image.name", value=str(file), remedy=remedy)
    encoder.load_state_dict({**own, **{key: state[key] for key in own if key in state}})


def _read(file: Path, name: str) -> dict[str, Tensor]:
    if not file.is_file():
        raise ConfigError(name, "must be a file on this machine", value=str(file))
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        remedy = "Save its state dict as safetensors on a machine that trusts it."
        raise ConfigError(name, "must be loadable without running code", value=str(file), remedy=remedy) from None
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(name, "must be a readable weights file", value=str(file), remedy=reason) from None
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict):
        raise ConfigError(name, "must hold a state dict", value=type(loaded).__name__)
    return {key: value for key, value in loaded.items() if isinstance(value, Tensor)}


def _of_modality(state: dict[str, Tensor], modality: str) -> dict[str, Tensor]:
    """Of a model of ours the encoder of a modality; anything else as it is."""
    prefix = f"encoders.{modality}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)} or state


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that a wrapper put before every key."""
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _adapt(state: dict[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """With the stem and the position embedding of the encoder's input."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    own = encoder.state_dict()
    adapted = dict(state)
    for key, value in state.items():
        target = own.get(key)
        if target is not None and value.ndim == target.ndim == 4 and value.shape[1] == 3 and target.shape[1] == 1:
            adapted[key] = value.sum(dim=1, keepdim=True)
    position, target = adapted.get("pos_embed"), own.get("pos_embed")
    if position is not None and target is not None and position.ndim == 3 and position.shape != target.shape:
        grid = list(encoder.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
        prefix = int(encoder.num_prefix_tokens)  # type: ignore[arg-type]
        adapted["pos_embed"] = resample_abs_pos_embed(position, new_size=grid, num_prefix_tokens=prefix)
    return adapted
