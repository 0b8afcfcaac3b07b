"""Is text from others shown so that it cannot deceive?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.text import printable


@given(st.text())
def test_what_is_shown_is_printable(text: str) -> None:
    assert printable(text).isprintable()


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"])))
def test_plain_text_is_shown_as_it_is(plain: str) -> None:
    assert printable(plain) == plain
