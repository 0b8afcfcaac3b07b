"""How does training start without torch's compiler, whose import takes longer than a small site's round?

``torch.optim`` imports ``torch._dynamo`` for two functions that do nothing where nothing is compiled. A stand-in has
these two; whoever asks it for anything else gets the compiler.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any, TypeVar

import torch

_NAME = "torch._dynamo"
T = TypeVar("T")


class _Dynamo(ModuleType):
    @staticmethod
    def disable(function: T, recursive: bool = True, *, wrapping: bool = True) -> T:
        return function

    @staticmethod
    def graph_break() -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # of the import system, about the stand-in; but for its parts
            raise AttributeError(name)
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        return getattr(importlib.import_module(_NAME), name)


def postpone_dynamo() -> None:
    """Put the stand-in where nobody has imported the compiler yet."""
    if _NAME not in sys.modules:
        stand_in = _Dynamo(_NAME)
        sys.modules[_NAME] = stand_in
        vars(torch)["_dynamo"] = stand_in
