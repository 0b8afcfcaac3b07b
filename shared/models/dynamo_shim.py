"""How does a process start without torch's compiler, whose import takes longer than a small site's round?

``torch.optim``, torchvision and timm import ``torch._dynamo`` for three functions that do nothing where nothing is
compiled. Stand-ins have these three; whoever asks them for anything else gets the compiler.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any, TypeVar

import torch

_NAME, _UTILS = "torch._dynamo", "torch._dynamo.utils"
T = TypeVar("T")


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        # The import system asks about the stand-in; only by __path__, of a package, for what is behind it.
        if name.startswith("__") and (name, self.__name__) != ("__path__", _NAME):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


class _Dynamo(_StandIn):
    @staticmethod
    def disable(function: T, recursive: bool = True, *, reason: str | None = None, wrapping: bool = True) -> T:
        return function

    @staticmethod
    def graph_break() -> None:
        return None


class _Utils(_StandIn):
    @staticmethod
    def is_compile_supported(device_type: Any) -> Any:  # which torchvision asks when it is about to compile
        return _real(_UTILS).is_compile_supported(device_type)


def _real(name: str) -> Any:
    for stood_in in (_NAME, _UTILS):
        if isinstance(sys.modules.get(stood_in), _StandIn):
            del sys.modules[stood_in]
    return importlib.import_module(name)


def postpone_dynamo() -> None:
    """Put the stand-ins where nobody has imported the compiler yet."""
    if _NAME not in sys.modules:
        stand_in, utils = _Dynamo(_NAME), _Utils(_UTILS)
        sys.modules[_NAME], sys.modules[_UTILS] = stand_in, utils
        vars(stand_in)["utils"] = utils
        vars(torch)["_dynamo"] = stand_in
