"""Are seeds a function of what is done?"""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.randomness import derive_seed

parts = st.lists(st.integers() | st.text(alphabet="abc", max_size=3), min_size=1, max_size=4)


@given(parts)
def test_equal_parts_give_equal_seeds_that_torch_takes(values: list[object]) -> None:
    seed = derive_seed(*values)
    assert seed == derive_seed(*values)
    torch.Generator().manual_seed(seed)
    assert 0 <= seed < 2**63


def test_seeds_of_different_parts_differ() -> None:
    seeds = [derive_seed(s, stage, r, site) for s in (1, 2) for stage in "ab" for r in range(5) for site in ("x", "y")]
    assert len(set(seeds)) == len(seeds)
    assert derive_seed("a", "bc") != derive_seed("ab", "c")


def test_seeds_are_those_of_recorded_runs() -> None:
    assert derive_seed(1, "finetune", 2, "north") == 8621761524361750346
