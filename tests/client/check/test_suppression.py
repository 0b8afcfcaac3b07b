"""Can a reader of the shown counts find out a small one, by whatever reckoning?"""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.check.suppression import WITHHELD, Cell, Count, protect, share, shown


def group(values: tuple[int, ...]) -> list[Count]:
    return [Count(str(place), value) for place, value in enumerate(values)]


@pytest.mark.parametrize(
    ("smallest", "categories", "largest"), [(3, 2, 20), (3, 3, 13), (3, 4, 9), (4, 3, 16), (5, 2, 30), (5, 3, 21)]
)
def test_every_small_count_stays_possible(smallest: int, categories: int, largest: int) -> None:
    # Whoever knows the rule and the total can list all tables that would be shown in the same way. Among them each
    # hidden small count must take every small value; where a group is withheld as a whole, at least two values.
    tables = defaultdict(list)
    for values in itertools.product(range(largest + 1), repeat=categories):
        tables[sum(values), tuple(protect(group(values), smallest))].append(values)
    hidden = 0
    for (_, seen), alike in tables.items():
        for place, count in enumerate(seen):
            possible = {values[place] for values in alike}
            if count == f"<{smallest}":
                if sum(alike[0]) > largest:  # other tables of this total are out of our range
                    continue
                hidden += 1
                assert possible == set(range(1, smallest)), (seen, alike)
            elif (
                count == WITHHELD
                and any(0 < values[place] < smallest for values in alike)
                and sum(alike[0]) >= smallest
            ):
                assert len(possible) > 1, (seen, alike)
    assert hidden


counts = st.integers(0, 40)


@given(st.lists(counts, min_size=1, max_size=6), st.integers(3, 12))
def test_no_small_count_is_shown_and_none_is_the_only_hidden_one(values: list[int], smallest: int) -> None:
    seen = protect(group(tuple(values)), smallest)
    hidden = [value for value, count in zip(values, seen, strict=True) if isinstance(count, str)]
    for value, count in zip(values, seen, strict=True):
        assert isinstance(count, str) or count == value
        assert not 0 < value < smallest or isinstance(count, str)
    assert not any(0 < value < smallest for value in values) or len(hidden) != 1 or sum(values) == hidden[0]
    if all(value == 0 or value >= smallest for value in values):
        assert seen == values  # nothing is hidden without need


def test_what_stands_below_a_hidden_count_is_not_shown() -> None:
    years = (("year", (Count("2019", 3), Count("2020", 20))),)
    root = Count("scans", 123, groups=(("device", (Count("A", 100), Count("B", 23, groups=years))),))
    device = shown(root, 5).group("device")
    assert [cell.count for cell in device] == [100, 23]
    assert [cell.count for cell in device[1].group("year")] == ["<5", WITHHELD]
    few = Count(
        "scans", 103, groups=(("device", (Count("A", 100), Count("B", 3, groups=(("year", (Count("2019", 3),)),)))),)
    )
    assert [cell.groups for cell in shown(few, 5).group("device")] == [(), ()]


def test_many_scans_of_few_patients_are_a_small_count() -> None:
    root = Count("scans", 200, 40, ((("device"), (Count("A", 150, 38), Count("B", 50, 2))),))
    assert [cell.count for cell in shown(root, 5).group("device")] == [WITHHELD, "<5"]


def test_a_partition_must_add_up() -> None:
    with pytest.raises(ValueError, match="must add up"):
        shown(Count("scans", 10, groups=(("eye", (Count("R", 5), Count("L", 6))),)), 5)


def test_shares_of_hidden_counts_are_not_told() -> None:
    assert share(5, 20) == 0.25
    assert share("<5", 20) is None
    assert share(5, WITHHELD) is None
    assert share(0, 0) is None


def test_a_category_that_is_not_there_is_told_from_one_that_is_hidden() -> None:
    cell = Cell("scans", 20, (("eye", (Cell("R", 20),)),))
    assert (cell.find("eye", "R"), cell.find("eye", "L"), cell.find("year", "2020")) == (20, 0, WITHHELD)
