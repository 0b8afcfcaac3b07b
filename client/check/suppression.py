"""Which counts may be shown, so that no small one can be read or reckoned from the others?

A count is small when it is of fewer than ``smallest`` patients (or whatever is counted), and not zero. In a group of
counts with a known total the small ones are hidden, and with them as many others as it takes to make every small count
possible. Counts form a tree: what stands below a hidden count is not shown at all, so that each count takes part in
one sum only and a group can be judged by itself.

The others are taken in the order of the listing, never by size, and the test uses nothing but what a reader can see:
which ones were taken then tells nothing. ``tests/client/check/test_suppression.py`` goes through whole ranges of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WITHHELD = "*"  # not small by itself, but a small one could be reckoned from it
Shown = int | str  # the count; "<5"; or WITHHELD


@dataclass(frozen=True)
class Count:
    """A count and what it is made of.

    Attributes:
        name: of the category, in words that may be shown.
        value: how many.
        patients: of how many patients these are; None: the value itself says.
        groups: partitions of this count, by name; each adds up to ``value``.
    """

    name: str
    value: int
    patients: int | None = None
    groups: tuple[tuple[str, tuple[Count, ...]], ...] = ()


@dataclass(frozen=True)
class Cell:
    """What is shown of a ``Count``; a hidden one has no groups."""

    name: str
    count: Shown
    groups: tuple[tuple[str, tuple[Cell, ...]], ...] = ()

    def group(self, name: str) -> tuple[Cell, ...]:
        """The cells of one partition; none where it is not shown."""
        return dict(self.groups).get(name, ())

    def find(self, group: str, name: str) -> Shown:
        """The count of one category; ``WITHHELD`` where it is not shown, 0 where the partition has no such category."""
        cells = self.group(group)
        if not cells and self.count != 0:
            return WITHHELD
        return next((cell.count for cell in cells if cell.name == name), 0)


def shown(root: Count, smallest: int) -> Cell:
    """What may be shown of a tree of counts."""
    return _cell(root, _own(root, smallest), smallest)


def _cell(node: Count, count: Shown, smallest: int) -> Cell:
    if isinstance(count, str):
        return Cell(node.name, count)
    groups = []
    for name, children in node.groups:
        if sum(child.value for child in children) != node.value:
            raise ValueError(f"{node.name} by {name} must add up")
        counts = protect(children, smallest)
        if any(count != WITHHELD for count in counts):  # else not even how many there are
            cells = (_cell(child, own, smallest) for child, own in zip(children, counts, strict=True))
            groups.append((name, tuple(cells)))
    return Cell(node.name, count, tuple(groups))


def protect(group: Sequence[Count], smallest: int) -> list[Shown]:
    """What is shown of the counts of one partition whose total is known.

    Args:
        smallest: counts below it are small; at least 3, as the only small count would else be known to be 1.
    """
    counts = [_own(count, smallest) for count in group]
    small = [place for place, count in enumerate(counts) if isinstance(count, str)]
    if not small:
        return counts
    others = [place for place, count in enumerate(counts) if isinstance(count, int) and count > 0]
    hidden = sum(group[place].value for place in small)
    for taken, place in enumerate(others, start=1):
        counts[place] = WITHHELD
        hidden += group[place].value
        # What is left for one small count when the other hidden ones are as small as they can be.
        if hidden - (len(small) - 1) - smallest * taken >= smallest:
            return counts
    return [WITHHELD] * len(group)  # not even which are zero: as many ones as the total would be plain to see


def _own(count: Count, smallest: int) -> Shown:
    patients = count.value if count.patients is None else min(count.value, count.patients)
    return count.value if count.value == 0 or patients >= smallest else f"<{smallest}"


def share(part: Shown, whole: Shown) -> float | None:
    """Part of the whole, where both are shown and there is a whole."""
    return part / whole if isinstance(part, int) and isinstance(whole, int) and whole else None
