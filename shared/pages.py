"""How does a template become a page? With the style that all pages share, without script, each file by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TEMPLATE = "page.html.j2"
_SHARED = Path(__file__).parent  # where base.css is


def render_page(folder: Path, say: Sequence[Callable[..., Any]], **content: Any) -> str:
    """The template in a folder, filled.

    Args:
        folder: holds ``page.html.j2`` and what it includes; ``base.css`` comes along.
        say: functions by which the template words values, as filters of their own names.
    """
    import jinja2  # slow to import: only a page pays for it

    room = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _SHARED]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    room.filters |= {each.__name__: each for each in say}
    return room.get_template(TEMPLATE).render(**content)
