"""How is text from others shown? So that it cannot rewrite the terminal, or what is read on it."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with its code in the place of every character that is not printable."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
