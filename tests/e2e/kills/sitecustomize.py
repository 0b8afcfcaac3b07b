"""Which process of a federation dies where? Python reads this file at the start of all that have it on their path.

``FEDRETINA_KILLS`` names a folder with ``plan.json``: a list of [kind of process, module, function, call, before or
after, at once]. One place is armed at a time: the next one when the run has moved on since the last death, or at once.
A death leaves a file named by its place in the list.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["FEDRETINA_KILLS"])
PLAN: list[list[Any]] = json.loads((FOLDER / "plan.json").read_text())
KIND = " ".join(sys.orig_argv)
calls: dict[int, int] = {}


def armed(place: int) -> bool:
    """Is it the turn of this entry?"""
    if place and not (FOLDER / str(place - 1)).exists():
        return False
    if (FOLDER / str(place)).exists():
        return False
    at_once = PLAN[place][5]
    return place == 0 or at_once or rounds() > int((FOLDER / str(place - 1)).read_text() or "99999")


def rounds() -> int:
    """Phases that the run has behind it."""
    try:
        return Path(json.loads((FOLDER / "run.json").read_text()), "rounds.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def die(place: int) -> None:
    """End this process as a power cut does, unless another one did at this place."""
    try:
        handle = os.open(FOLDER / str(place), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return
    os.write(handle, str(rounds()).encode())
    os.kill(os.getpid(), signal.SIGKILL)


def wrapped(function: Callable[..., Any], place: int, call: int, when: str) -> Callable[..., Any]:
    """The function, with a death at its ``call``-th call since it was armed."""

    def pass_by() -> None:
        if armed(place):
            calls[place] = calls.get(place, 0) + 1
            if calls[place] >= call:
                die(place)

    @functools.wraps(function)
    def dying(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            pass_by()
        result = function(*arguments, **named)
        if when == "after":  # a site may be in a call for long, waiting for a task
            pass_by()
        return result

    return dying


def plant(modules: Iterable[Any]) -> None:
    """Wrap the functions of the plan in these modules, and wherever they were taken from them already."""
    whole_of: dict[int, Any] = {}  # what was wrapped first, by what it was wrapped in last
    dying_of: dict[int, Any] = {}
    for module in modules:
        for place, (_, _, function, call, when, _) in places_in(module.__name__):
            owner: Any = module
            *parents, last = function.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
            present = getattr(owner, last)
            dying = wrapped(present, place, call, when)
            setattr(owner, last, dying)
            whole = whole_of[id(dying)] = whole_of.get(id(present), present)
            dying_of[id(whole)] = dying
    for holder in list(sys.modules.values()):  # once for all: there are a hundred thousand names
        for name, value in list(getattr(holder, "__dict__", {}).items()):
            if id(value) in dying_of:
                setattr(holder, name, dying_of[id(value)])


def places_in(module: str) -> list[tuple[int, list[Any]]]:
    """Those of a module in this kind of process, with their places in the plan."""
    return [(place, entry) for place, entry in enumerate(PLAN) if entry[1] == module and entry[0] in KIND]


class Finder(importlib.abc.MetaPathFinder):
    """Wraps functions of the plan as soon as their module is loaded, before anybody takes them from it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not places_in(name):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            plant([module])

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Finder())
# Where this process was forked from another.
plant([sys.modules[name] for name in {entry[1] for entry in PLAN} & sys.modules.keys() if places_in(name)])
