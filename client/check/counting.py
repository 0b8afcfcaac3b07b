"""How does a table become counts? Categories and how many rows and patients each has, and quantiles over patients."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import pandas as pd

from client.check.suppression import Count
from client.check.tables import OTHER

_QUANTILES = (("p5", 0.05), ("p25", 0.25), ("median", 0.5), ("p75", 0.75), ("p95", 0.95))
_DIGITS = 3


def nested(rows: pd.DataFrame, *columns: str) -> tuple[Count, ...]:
    """Rows counted by the first column, each of these by the next, and so on; ``subject_id`` says whose they are."""
    column, *rest = columns
    counts = []
    for name, part in rows.groupby(column, sort=True):
        groups = ((rest[0], nested(part, *rest)),) if rest else ()
        counts.append(Count(str(name), len(part), part["subject_id"].nunique(), groups))
    return tuple(counts)


def without_rare(rows: pd.DataFrame, column: str, smallest: int) -> pd.DataFrame:
    """The rows, with names that fewer than ``smallest`` patients share made "other": a rare name may name a patient."""
    patients = rows.groupby(column)["subject_id"].nunique()
    names = rows[column].where(rows[column].map(patients) >= smallest, OTHER)
    return rows.assign(**{column: names})


def parted(
    name: str, whole: AbstractSet[int], part: AbstractSet[int], words: tuple[str, str]
) -> tuple[str, tuple[Count, ...]]:
    """A partition of patients in two: those of ``part`` and the others."""
    inside = len(whole & part)
    return name, (Count(words[0], inside), Count(words[1], len(whole) - inside))


def binned(values: pd.Series, edges: Sequence[int]) -> tuple[Count, ...]:
    """Patients by a whole number that each has, in bins that begin at ``edges``; empty bins are left out."""
    counts = []
    for low, above in zip(edges, [*edges[1:], None], strict=True):
        name = f"{low} or more" if above is None else f"{low} to {above - 1}"
        inside = values >= low if above is None else values.between(low, above - 1)
        if inside.any():
            counts.append(Count(name, int(inside.sum())))
    return tuple(counts)


def quantiles(values: pd.Series, smallest: int) -> dict[str, float]:
    """Quantiles of one value a patient: those beyond which at least ``smallest`` patients lie, to three digits.

    So the middle one needs ``2 * smallest`` patients, and neither a minimum nor a maximum is ever told.
    """
    known = values.dropna()
    told = {name: at for name, at in _QUANTILES if min(at, 1 - at) * len(known) >= smallest}
    return {name: float(f"{known.quantile(at):.{_DIGITS}g}") for name, at in told.items()}
