"""Is a series taken whole, in its order?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.batched import batched


@given(st.lists(st.integers()), st.integers(1, 9))
def test_batches_together_are_the_series(items: list[int], size: int) -> None:
    batches = list(batched(iter(items), size))
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(batches)
