"""Does a local weights file start an encoder exactly, and can it do nothing else?"""

from __future__ import annotations

import argparse
import builtins
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shared.config import ImageEncoder, Images
from shared.errors import ConfigError
from shared.models.images import build_image_encoder
from shared.models.weights import start_encoder

KNOB = "model.image.weights.oct"


def encoder_of(name: str = "test_vit", size: int = 64, seed: int = 0, **arguments: Any) -> nn.Module:
    """An encoder with parameters drawn from a seed, those that start as constants too."""
    encoder = build_image_encoder(ImageEncoder(name, arguments), Images(size, size)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return encoder


def assert_same(a: nn.Module, b: nn.Module, size: int = 64) -> None:
    images = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(9))
    assert torch.equal(a(images), b(images))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet", "convnext_atto"])
def test_saved_weights_start_the_same_encoder(tmp_path: Path, name: str) -> None:
    source, target = encoder_of(name, seed=1), encoder_of(name, seed=2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    start_encoder(target, tmp_path / "w.safetensors", "oct")
    assert_same(source, target)


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"model": state, "epoch": 3},
    lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    lambda state: {"teacher": {f"module.backbone.{k}": v for k, v in state.items()}},
])  # fmt: skip
def test_the_usual_wrappers_are_taken_off(tmp_path: Path, wrap: Any) -> None:
    source, target = encoder_of(seed=1), encoder_of(seed=2)
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    start_encoder(target, tmp_path / "w.pth", "oct")
    assert_same(source, target)


def retfound(source: nn.Module, file: Path) -> None:
    """RETFound's layout: an MAE checkpoint of RGB images with its decoder and the run's arguments."""
    state = {k: v.clone() for k, v in source.state_dict().items()}
    state |= {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_embed.weight": torch.zeros(8, 8),
        "decoder_blocks.0.norm1.weight": torch.zeros(8),
        "head.weight": torch.zeros(2, 64),
        "head.bias": torch.zeros(2),
    }
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-3, data_path="/data"), "epoch": 799}, file)


def test_retfound_starts_a_one_channel_encoder_of_its_own_size(tmp_path: Path) -> None:
    """The sum of the three filters sees a grey image as the RGB stem saw it in three equal channels."""
    import timm

    source = timm.create_model("test_vit", num_classes=0, img_size=64).eval()
    retfound(source, tmp_path / "RETFound_oct_weights.pth")
    target = encoder_of(seed=2)
    start_encoder(target, tmp_path / "RETFound_oct_weights.pth", "oct")
    grey = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(target(grey), source(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_retfound_starts_an_encoder_of_another_grid(tmp_path: Path) -> None:
    source, target = encoder_of(size=64, seed=1), encoder_of(size=96, seed=2)
    with torch.no_grad():  # positions that a linear function gives are kept by resampling
        grid = torch.arange(4.0).repeat_interleave(4) * 1.0
        source.pos_embed[:, 1:] = grid[None, :, None]  # type: ignore[index, operator]
    retfound(source, tmp_path / "w.pth")
    start_encoder(target, tmp_path / "w.pth", "oct")
    assert torch.equal(target.pos_embed[:, :1], source.pos_embed[:, :1])  # type: ignore[index]
    rows = target.pos_embed[0, 1:, 0].view(6, 6)  # type: ignore[index, operator]
    torch.testing.assert_close(rows, rows[:, :1].expand(6, 6), rtol=1e-3, atol=1e-3)
    assert (rows[:, 0].diff() > 0).all()
    others = {k: v for k, v in source.state_dict().items() if k != "pos_embed"}
    assert all(torch.equal(target.state_dict()[key], value) for key, value in others.items())


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import builtins; builtins.fedretina_was_here = True",)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path, protocol: str) -> None:
    file = tmp_path / "w.pth"
    content = {"model": encoder_of().state_dict(), "args": Bomb()}
    if protocol == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ConfigError) as caught:
        start_encoder(encoder_of(), file, "oct")
    assert str(caught.value).startswith(f"{KNOB} must be loadable without running code, got '{file}'. Save its state")
    assert not hasattr(builtins, "fedretina_was_here")


def test_the_trust_in_an_argparse_namespace_ends_with_the_reading(tmp_path: Path) -> None:
    retfound(encoder_of(), tmp_path / "w.pth")
    start_encoder(encoder_of(), tmp_path / "w.pth", "oct")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("modality", ["oct", "ir"])
def test_a_model_of_an_earlier_study_starts_the_encoder_of_the_same_modality(tmp_path: Path, modality: str) -> None:
    sources = {"oct": encoder_of(seed=1), "ir": encoder_of(seed=3)}
    state = {f"encoders.{name}.{k}": v for name, source in sources.items() for k, v in source.state_dict().items()}
    save_file(state | {"fuse.bias": torch.zeros(1)}, tmp_path / "model.safetensors")
    target = encoder_of(seed=2)
    start_encoder(target, tmp_path / "model.safetensors", modality)
    assert_same(sources[modality], target)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_weights_of_another_architecture_are_refused(tmp_path: Path, name: str) -> None:
    save_file(encoder_of(name).state_dict(), tmp_path / "w.safetensors")
    target = encoder_of(seed=2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(
        ConfigError, match=r"must hold weights of model\.image\.name, got .*tensors are not in the file"
    ):
        start_encoder(target, tmp_path / "w.safetensors", "oct")
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_weights_of_another_width_are_refused_with_both_shapes(tmp_path: Path) -> None:
    save_file(encoder_of("convnext_atto", dims=[8, 8, 8, 8], depths=[1] * 4).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"is \(8, 1, 4, 4\) there and \(4, 1, 4, 4\) here\.$"):
        start_encoder(encoder_of("convnext_atto", dims=[4] * 4, depths=[1] * 4), tmp_path / "w.safetensors", "oct")


@pytest.mark.parametrize(
    ("file", "content", "rule"),
    [
        ("none.pth", None, "must be a file on this machine"),
        ("w.pth", b"", "must be"),
        ("w.pth", b"not weights", "must be"),
        ("w.safetensors", b"not weights", "must be a readable weights file"),
        ("w.safetensors", b"", "must be a readable weights file"),
    ],
)
def test_what_is_no_weights_file_is_refused_in_one_line(
    tmp_path: Path, file: str, content: bytes | None, rule: str
) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        start_encoder(encoder_of(), tmp_path / file, "oct")
    assert str(caught.value).startswith(f"{KNOB} {rule}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {}, {"model": {"a": 1}}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"^model\.image\.weights\.oct must hold"):
        start_encoder(encoder_of(), tmp_path / "w.pth", "oct")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    torch.save(encoder_of().state_dict(), tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    for length in np.linspace(0, len(whole) - 1, 8).astype(int):
        (tmp_path / "w.pth").write_bytes(whole[:length])
        with pytest.raises(ConfigError):
            start_encoder(encoder_of(), tmp_path / "w.pth", "oct")
