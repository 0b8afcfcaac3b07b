"""Do exactly the trained tensors travel, and come back where they were?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from shared.errors import MessageError
from shared.weights import carry_encoders, read_weights, travelling, write_weights


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))  # without dimension
        self.encoders = nn.ModuleDict()
        self.encoders["oct"] = self.encoders["ir"] = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("constant", torch.ones(2), persistent=False)


def test_shared_tensors_travel_once_and_constants_and_counters_do_not() -> None:
    expected = {"scale", "encoders.oct.weight", "encoders.oct.bias", "norm.weight", "norm.bias"}
    assert set(travelling(Module())) == expected | {"norm.running_mean", "norm.running_var"}


def test_reading_and_writing_are_inverse() -> None:
    source, target = Module(), Module()
    nn.init.normal_(source.norm.running_mean)
    weights = read_weights(source)
    write_weights(target, weights)
    for name, array in read_weights(target).items():
        np.testing.assert_array_equal(array, weights[name])
        assert array.shape == weights[name].shape


def test_weights_that_were_read_do_not_change_with_the_module() -> None:
    module = Module()
    weights = read_weights(module)
    before = weights["scale"].copy()
    with torch.no_grad():
        module.scale.add_(1.0)
    assert weights["scale"] == before


def test_writing_keeps_the_parameters_that_an_optimizer_holds() -> None:
    module = Module()
    held = list(module.parameters())
    write_weights(module, read_weights(Module()))
    assert all(a is b for a, b in zip(held, module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.bias": np.zeros((3, 1), np.float32)}, r"weights norm\.bias must have shape \(3,\), got \(3, 1\)"),
        ({"scale": np.zeros(1, np.float32)}, r"weights scale must have shape \(\), got \(1,\)"),
        ({"other": np.zeros(1)}, "must have the names of the model's tensors, got 'other'"),
    ],
)
def test_weights_of_another_model_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(MessageError, match=message):
        write_weights(Module(), read_weights(Module()) | change)


def test_a_missing_tensor_is_named() -> None:
    weights = read_weights(Module())
    del weights["norm.bias"]
    with pytest.raises(MessageError, match=r"got 'norm\.bias'"):
        write_weights(Module(), weights)


def test_only_encoders_of_the_target_are_carried() -> None:
    source = {"encoders.oct.w": np.ones(1), "encoders.ir.w": np.ones(1), "projections.oct.w": np.ones(1)}
    target = {"model.encoders.oct.w": np.zeros(1), "model.fuse.w": np.zeros(1), "projections.oct.w": np.zeros(1)}
    carried = carry_encoders(source, target, "model.")
    assert {name: float(array[0]) for name, array in carried.items()} == {
        "model.encoders.oct.w": 1.0,
        "model.fuse.w": 0.0,
        "projections.oct.w": 0.0,
    }
