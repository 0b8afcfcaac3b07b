"""What is in a FHIR resource, whatever the file put there?

Each function returns an element of the type that FHIR gives it, None or nothing where it is absent, and raises
``LeftOutError`` where it is something else: an element of another type must not pass for an absent one.
"""

from __future__ import annotations

import math
import re
from typing import Any

from client.ingest.export import QUARANTINED, LeftOutError

Node = dict[str, Any]
_LONGEST_TEXT = 2000
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # controls, and halves of characters that cannot be written


def malformed() -> LeftOutError:
    """The error of an element that is not what FHIR says."""
    return LeftOutError(QUARANTINED, "an element that is not of the type or form that FHIR gives it")


def node(parent: Node, name: str) -> Node | None:
    """A complex element."""
    value = parent.get(name)
    if value is not None and not isinstance(value, dict):
        raise malformed()
    return value


def nodes(parent: Node, name: str) -> list[Node]:
    """A complex element that repeats."""
    values = parent.get(name)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise malformed()
    return values


def text(parent: Node, name: str) -> str | None:
    """A string, a code, a URI or a date, without the blanks around it; None where it is empty."""
    value = parent.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or _UNPRINTABLE.search(value):
        raise malformed()
    return value.strip() or None


def number(parent: Node, name: str) -> float | None:
    """A decimal or an integer, finite."""
    value = parent.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise malformed()
    try:
        found = float(value)
    except OverflowError:
        raise malformed() from None
    if not math.isfinite(found):
        raise malformed()
    return found


def flag(parent: Node, name: str) -> bool:
    """A boolean; False where it is absent."""
    value = parent.get(name)
    if value is not None and not isinstance(value, bool):
        raise malformed()
    return bool(value)
