"""Who is there? Patients with scans and records, how many scans each has, and in which split they are."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import pandas as pd

from client.check.counting import binned, parted
from client.check.scans import patients_by_modality
from client.check.suppression import Count
from client.check.tables import Tables, known_splits

WITH_SCANS, NO_SCANS = "with scans", "records only"
WITH_RECORDS, NO_RECORDS = "with records", "scans only"
# None is one wide: from the number of scans and of patients, a count in a bin of one value could be reckoned.
_SCANS = (1, 3, 5, 9, 17, 33)


def patient_counts(tables: Tables) -> Count:
    """All patients: by scans, and of those with scans by records, modality and number of scans; by fixed split."""
    everybody, scanned = tables.patients, set(tables.images["subject_id"])
    recorded = set(tables.events["subject_id"].unique())
    name, (have, have_not) = parted("scans", everybody, scanned, (WITH_SCANS, NO_SCANS))
    groups = (
        parted("records", scanned, recorded, (WITH_RECORDS, NO_RECORDS)),
        ("modality", patients_by_modality(tables)),
        ("scans a patient", binned(tables.images["subject_id"].value_counts(), _SCANS)),
    )
    by_scans = (Count(have.name, have.value, groups=groups), have_not)
    partitions: list[tuple[str, tuple[Count, ...]]] = [(name, by_scans)]
    if len(tables.splits):
        partitions.append(("split", _splits(tables, everybody)))
    return Count("patients", len(everybody), groups=tuple(partitions))


def _splits(tables: Tables, everybody: AbstractSet[int]) -> tuple[Count, ...]:
    splits = known_splits(tables.splits).set_index("subject_id")["split"]
    chosen = pd.Series(sorted(everybody), dtype="int64").map(splits).fillna("by the study's hash")
    return tuple(Count(str(name), int(count)) for name, count in chosen.value_counts().sort_index().items())
