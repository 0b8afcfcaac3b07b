"""Is the set on the disk a set?"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from client.ingest.met import open_met

names = st.sampled_from(["a", "b", "ä", os.fsdecode(b"\xff"), ""]) | st.integers(0, 2000).map(str)


@given(st.lists(st.lists(names, max_size=1200), max_size=4))
def test_a_name_is_new_once(lists: list[list[str]]) -> None:
    seen: dict[str, None] = {}
    with tempfile.TemporaryDirectory() as folder, open_met(Path(folder)) as met:
        for some in lists:
            expected = [name for name in dict.fromkeys(some) if name not in seen]
            assert met.new(some) == expected
            assert met.add(some) == expected
            seen |= dict.fromkeys(some)
            assert met.new(some) == []
