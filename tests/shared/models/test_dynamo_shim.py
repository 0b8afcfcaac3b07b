"""Does a process start without torch's compiler, compute the same, and leave the compiler to whoever wants it?"""

import subprocess
import sys

from shared.code import ROOT

IS_LOADED = "print('torch._dynamo.convert_frame' in sys.modules)"
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
print(layer.weight.tolist())
{after}
"""
SHIM = "from shared.models.dynamo_shim import postpone_dynamo; postpone_dynamo()"
TIMM = "from shared.models.torchvision_shim import ensure_torchvision; ensure_torchvision(); import timm"
ROI = "torchvision.ops.roi_align.__globals__['is_compile_supported']('cpu')"


USES = ("import torch._dynamo.config", f"import torchvision; {ROI}")
# Each in a fork of its own, as the first to want the compiler.
USED = f"""
import os
for use in {USES!r}:
    if not os.fork():
        exec(use)
        assert torch._dynamo.is_compiling
        assert torch._dynamo.reset
        optimizer.step()
        {IS_LOADED}
        sys.stdout.flush()
        os._exit(0)
    _, status = os.wait()
    assert status == 0
"""


def output_of(shim: str, after: str) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-u", "-c", TRAIN.format(shim=shim, after=after)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_numbers_are_the_same_and_only_who_wants_the_compiler_gets_it() -> None:
    """Fails when a newer torch, torchvision or timm asks the compiler for more, or torch asks it for nothing."""
    with_shim, without = output_of(SHIM, f"{TIMM}; {IS_LOADED}\n{USED}"), output_of("", IS_LOADED)
    assert with_shim[0] == without[0]
    assert with_shim[1:] == ["False", *["True"] * len(USES)]
    assert without[1:] == ["True"]
