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
import timm
print(layer.weight.tolist(), "torch._dynamo.convert_frame" in sys.modules)
{after}
"""
SHIM = "from shared.models.torchvision_shim import ensure_torchvision; ensure_torchvision()"


def output_of(shim: str, after: str = "") -> list[str]:
    command = [sys.executable, "-W", "ignore", "-c", TRAIN.format(shim=shim, after=after)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_numbers_are_the_same_and_the_compiler_is_not_loaded() -> None:
    """Fails when a newer torch asks the compiler for more, or for nothing: then the stand-in has to go."""
    (with_shim,), (without,) = output_of(SHIM), output_of(f"import torch._dynamo; {SHIM}")
    assert with_shim.endswith("False")
    assert without.endswith("True")
    assert with_shim.removesuffix("False") == without.removesuffix("True")


@pytest.mark.parametrize(
    "use",
    [
        "import torch._dynamo.config",
        "assert torch._dynamo.is_compiling",
        "from torch._dynamo.utils import counters",
        "import torchvision; torchvision.ops.roi_align.__globals__['is_compile_supported']('cpu')",
    ],
)
def test_whoever_wants_the_compiler_gets_it(use: str) -> None:
    after = f"{use}; assert torch._dynamo.reset; optimizer.step(); print('torch._dynamo.convert_frame' in sys.modules)"
    assert output_of(SHIM, after)[-1] == "True"
