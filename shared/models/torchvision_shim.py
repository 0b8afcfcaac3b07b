"""How does timm import where torchvision cannot load its compiled operators?

PyPI's torchvision is built against CUDA torch; beside a CPU torch its import ends in "operator torchvision::nms does
not exist". None of those operators is used here, so declaring the two names that its fake kernels ask for is enough.
Where torchvision imports, nothing happens.
"""

from __future__ import annotations

import importlib
import sys

import torch

from shared.models.dynamo_shim import postpone_dynamo

_libraries: list[torch.library.Library] = []  # a Library undoes its declarations when it is collected


def ensure_torchvision() -> None:
    """Import torchvision, declaring its missing operators first where that is what stops it."""
    postpone_dynamo()
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _libraries.append(library)
        importlib.import_module("torchvision")
