"""How does a simulation get more processes? One imports everything, does nothing else, and forks the others."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext


def forking() -> ForkServerContext:
    """The context of multiprocessing whose processes begin at once: imports alone would take each of them seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simulation.run"])
    return context
