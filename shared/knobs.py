"""How is a tree of settings declared, checked, read and written?

A knob is a field of a frozen dataclass, declared once with its default, unit, rule and meaning.
``load`` reads a tree from plain data and refuses whatever was not declared; ``dump`` writes it back;
``digest`` names it. Trees hold only booleans, numbers, strings, tuples, mappings with names as keys, and further trees.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Protocol, TypeVar

from shared.errors import ConfigError


class Tree(Protocol):
    """Any frozen dataclass declared with ``knob``."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


T = TypeVar("T", bound=Tree)


def knob(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    unit: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """Declare one setting: its default, meaning, unit and range."""
    metadata = {"help": help, "unit": unit, "ge": ge, "gt": gt, "le": le, "lt": lt, "choices": tuple(choices)}
    if isinstance(default, (dict, list)) or (dataclasses.is_dataclass(default) and not isinstance(default, type)):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check(tree: Tree, path: str = "") -> None:
    """Raise ``ConfigError`` for the first knob of this node that is out of its declared range."""
    for field in dataclasses.fields(tree):
        value = getattr(tree, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            _check_value(f"{path}{field.name}", item, field.metadata)


def _check_value(name: str, value: Any, rule: Mapping[str, Any]) -> None:
    if value is None:
        return
    if rule.get("choices") and value not in rule["choices"]:
        close = difflib.get_close_matches(str(value), rule["choices"], n=1)
        remedy = f"Did you mean {close[0]}?" if close else ""
        raise ConfigError(name, f"must be one of {', '.join(rule['choices'])}", value=value, remedy=remedy)
    bounds: list[tuple[str, str, Callable[[float, float], bool]]] = [
        ("gt", ">", lambda a, b: a > b),
        ("ge", ">=", lambda a, b: a >= b),
        ("lt", "<", lambda a, b: a < b),
        ("le", "<=", lambda a, b: a <= b),
    ]
    for key, sign, holds in bounds:
        bound = rule.get(key)
        if bound is not None and not holds(value, bound):
            unit = f" {rule['unit']}" if rule.get("unit") else ""
            raise ConfigError(name, f"must be {sign} {bound}{unit}", value=value)


def load(kind: type[T], data: Mapping[str, Any], path: str = "") -> T:
    """Read a tree of ``kind`` from plain data.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range or fields that contradict each other.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(path.rstrip(".: ") or kind.__name__, "must be a mapping of settings", value=data)
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"Did you mean {path}{close[0]}?" if close else f"Known here: {', '.join(known)}."
            raise ConfigError(f"{path}{key}", "is not a setting", remedy=remedy)
    hints = _hints(kind)
    values = {}
    for name, field in known.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{path}{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{path}{name}", "must be given")
    tree = kind(**values)
    check(tree, path)
    consistent = getattr(tree, "check_consistent", None)
    if consistent is not None:
        consistent(path)
    return tree


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(_choose(arguments, value, name), value, name)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return load(hint, value, f"{name}.")
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(name, "must be a list", value=value)
        return tuple(_convert(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(name, "must be a mapping with names as keys", value=value)
        return {key: _convert(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if hint is object:
        return _plain_data(value, name)
    if hint is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(name, f"must be of type {hint.__name__}", value=value)
    if hint is float and not math.isfinite(value):
        raise ConfigError(name, "must be finite", value=value)
    return value


def _plain_data(value: Any, name: str) -> Any:
    """A value whose type is not declared, as ``from_json`` would give it back."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise ConfigError(name, "must be plain data with finite numbers", value=value) from None


def _choose(arguments: Sequence[Any], value: Any, name: str) -> Any:
    """Of several trees, the one whose ``kind`` the data states."""
    options = [argument for argument in arguments if argument is not type(None)]
    if len(options) == 1:
        return options[0]
    by_kind = {option.__dataclass_fields__["kind"].default: option for option in options}
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in by_kind:
        raise ConfigError(f"{name}.kind", f"must be one of {', '.join(by_kind)}", value=kind)
    return by_kind[kind]


def dump(tree: Tree) -> dict[str, Any]:
    """The tree as plain data, every knob named."""
    return {field.name: _plain(getattr(tree, field.name)) for field in dataclasses.fields(tree)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dump(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def to_json(tree: Tree) -> str:
    """Canonical JSON: sorted keys, no spaces, so equal trees give equal bytes."""
    return json.dumps(dump(tree), sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_json(kind: type[T], text: str) -> T:
    """The inverse of ``to_json``.

    Raises:
        ConfigError: text that is not JSON, or not a tree of this kind.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or a number of thousands of digits
        raise ConfigError(kind.__name__, "must be valid JSON", value=str(error)) from None
    return load(kind, data)


def digest(tree: Tree) -> str:
    """SHA-256 of the canonical JSON, as hex."""
    return hashlib.sha256(to_json(tree).encode()).hexdigest()
