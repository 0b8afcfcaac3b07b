"""Does training start without torch's compiler, compute the same, and leave the compiler to whoever wants it?"""

import subprocess
import sys

import pytest

from shared.code import ROOT

TRAIN = """
import sys, torch
{shim}
torch.manual_seed(1)
layer = torch.nn.Linear(3, 2)
for kind in (torch.optim.AdamW, torch.optim.SGD):
    optimizer = kind(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
print(layer.weight.tolist(), "torch._dynamo.utils" in sys.modules)
{after}
"""
SHIM = "from client.dynamo_shim import postpone_dynamo; postpone_dynamo()"


def output_of(shim: str, after: str = "") -> list[str]:
    command = [sys.executable, "-W", "ignore", "-c", TRAIN.format(shim=shim, after=after)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_numbers_are_the_same_and_the_compiler_is_not_loaded() -> None:
    """Fails when a newer torch asks the compiler for more, or for nothing: then the stand-in has to go."""
    (with_shim,), (without,) = output_of(SHIM), output_of("")
    assert with_shim.endswith("False")
    assert without.endswith("True")
    assert with_shim.removesuffix("False") == without.removesuffix("True")


@pytest.mark.parametrize("use", ["import torch._dynamo.config", "assert torch._dynamo.is_compiling"])
def test_whoever_wants_the_compiler_gets_it(use: str) -> None:
    after = f"{use}; assert torch._dynamo.reset; optimizer.step(); print('torch._dynamo.utils' in sys.modules)"
    assert output_of(SHIM, after)[-1] == "True"
