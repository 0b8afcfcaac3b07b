"""Which outcomes are known? Cases of each label task, with the outcome and without."""

from __future__ import annotations

import re

from client.check.suppression import Count
from client.check.tables import Tables

POSITIVE, NEGATIVE = "with the outcome", "without"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


def case_counts(tables: Tables) -> tuple[Count, ...]:
    """One count a label task; a task whose file is not named as tasks are, or has few patients, is numbered."""
    counts = []
    for number, (task, table) in enumerate(sorted(tables.labels.items()), start=1):
        patients = table["subject_id"].nunique()
        plain = _NAME.fullmatch(task) and patients >= tables.settings.smallest_cell
        outcomes = []
        for name, rows in ((POSITIVE, table[table["boolean_value"]]), (NEGATIVE, table[~table["boolean_value"]])):
            outcomes.append(Count(name, len(rows), rows["subject_id"].nunique()))
        groups = (("outcome", tuple(outcomes)),)
        counts.append(Count(task if plain else f"task {number}", len(table), patients, groups))
    return tuple(counts)
