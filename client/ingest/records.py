"""How do clinical records of any export become the events of a site folder?

Each import keeps a part of its own in ``state/imports``; ``events.parquet`` is the union of all parts. So an import can
be repeated, corrected or interrupted: its part is replaced as a whole, and the union is made anew.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import pandas as pd
import pyarrow.parquet as pq

from client.feature_list import read_features
from client.ingest import parts, site_tables
from client.ingest.coverage import Coverage, coverage_lines, wanted_codes
from client.ingest.events import Number, Rules, Tally, to_events
from client.ingest.export import ExportError, FilesRead, LeftOut, Why
from client.ingest.journal import importing
from client.ingest.outcomes import LabelRows, Outcomes
from client.ingest.part_notes import Finisher, as_left_out
from client.ingest.progress import Progress
from client.ingest.units import Measure, read_measures, read_units
from client.ingest.vocabulary import Vocabulary, normal_code
from shared.config import Features
from shared.errors import SiteError
from shared.files import replacing
from shared.site_folder import SiteFolder

_PATIENTS_KEPT = 2**19  # in memory, so that their pseudonyms need not be computed for every table


class Patients(Protocol):
    """Gives each patient of the hospital a number (``client.ingest.pseudonyms``)."""

    def subject_id(self, original: str) -> int: ...


@dataclass(frozen=True)
class RecordsSummary:
    """What an import of records did.

    Attributes:
        rows: of the export.
        events: of this import, in the folder now; ``derived`` of them were computed (body mass index).
        patients: of this import.
        labels: by task.
        left_out: why rows are not in the folder, the most frequent reason first; then by reason of other imports.
        coverage: of this import.
        site_events: in the folder, of all imports.
    """

    kind: str
    rows: int
    events: int
    derived: int
    patients: int
    labels: Mapping[str, int]
    left_out: tuple[LeftOut, ...]
    coverage: Coverage
    site_events: int

    def lines(self) -> list[str]:
        """For people at the site: one fact a line."""
        derived = f", {self.derived} of them computed" if self.derived else ""
        head = f"{self.kind}: {self.rows} rows gave {self.events} events{derived} of {self.patients} patients"
        labels = [f"labels {task}: {count}" for task, count in self.labels.items()]
        reasons = map(str, self.left_out)
        return [head, *labels, *reasons, *coverage_lines(self.coverage), f"events in the folder: {self.site_events}"]


def import_records(
    site: SiteFolder | Path,
    kind: str,
    export: Path,
    tables: Iterable[pd.DataFrame | LeftOut | FilesRead | LabelRows],
    vocabulary: Vocabulary,
    patients: Patients,
    *,
    features: Features | None = None,
    extracted_at: str = "",
    progress: Progress | None = None,
    today: date | None = None,
) -> RecordsSummary:
    """Bring the records of an export into a site folder; what an earlier import of the same export brought is replaced.

    Args:
        kind: names the importer; with the export's path it says which earlier import this one replaces.
        tables: of ``RECORDS``, of any size, and what the importer left out; read once, a table in memory at a time.
        patients: gives the pseudonyms.
        features: the study's list, by which values are converted and checked; the project's own when None.
        extracted_at: ISO date of the extract; else the latest date in it. Nothing later is taken.
        progress: of the rows read.
        today: not the clock's, in a test.

    Raises:
        ExportError: nothing of it can be imported; the folder is as it was.
        SiteError: no such site folder, one that others wrote, a second import at the same time, a full disk.
    """
    site = site if isinstance(site, SiteFolder) else SiteFolder(site)
    site_tables.check_folder(site)
    with importing(site.path), _writing(site):
        site_tables.sweep(site)
        features = read_features() if features is None else features
        name = hashlib.sha256(f"{kind}\0".encode() + os.fsencode(export.resolve())).hexdigest()[:32]
        stated = _stated(site, name, extracted_at)
        rules = _rules(vocabulary, features, min(stated or date.max, today or date.today()))
        outcomes = Outcomes(rules.last_day)
        tally, finisher = Tally(), Finisher(rules)
        number = lru_cache(_PATIENTS_KEPT)(patients.subject_id)
        with tempfile.TemporaryDirectory(prefix=".draft-", dir=site_tables.parts_folder(site)) as draft:
            with progress or Progress("rows") as shown:
                rows = parts.deal(_chunks(tables, rules, number, tally, outcomes, shown), Path(draft))
            outcomes.settle()
            if not rows:
                raise _nothing(kind, tally)
            with replacing(site_tables.part_file(site, name), unless_equal=True) as file:
                parts.write_part(
                    file,
                    Path(draft),
                    rows,
                    finisher.finish,
                    lambda: finisher.notes(kind, tally, outcomes, str(stated or "")).plain(),
                )
        outcomes.write(site, name)
        joined = site_tables.join_all(site, rules, outcomes.horizons_days)
    return _summary(site, name, finisher, tally, outcomes, joined)


@contextmanager
def _writing(site: SiteFolder) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # an importer's own become errors of its export
        remedy = "The folder is valid as it is; make room and run the import again."
        raise SiteError(str(site.path), "must be writable and have room", value=error.strerror, remedy=remedy) from None


def _stated(site: SiteFolder, name: str, extracted_at: str) -> date | None:
    """The day of the extract, as told now, or when this export was imported before, or else in a new folder's file."""
    earlier = site_tables.read_all_notes(site)
    if not extracted_at:
        extracted_at = earlier[name].stated if name in earlier else "" if earlier else site.dataset().extracted_at[:10]
    try:
        return date.fromisoformat(extracted_at) if extracted_at else None
    except ValueError:
        raise ExportError("extracted_at", "must be an ISO date, such as 2024-12-31", value=extracted_at) from None


def _rules(vocabulary: Vocabulary, features: Features, last_day: date) -> Rules:
    wanted = {normal_code(one.code): Measure(one.unit, one.low, one.high) for one in features.numeric}
    return Rules(vocabulary, read_units(), {**read_measures(), **wanted}, wanted_codes(features), last_day)


def _chunks(
    tables: Iterable[pd.DataFrame | LeftOut | FilesRead | LabelRows],
    rules: Rules,
    number: Number,
    tally: Tally,
    outcomes: Outcomes,
    progress: Progress,
) -> Iterator[pd.DataFrame]:
    for table in tables:
        if isinstance(table, LeftOut):
            tally.left_out[table.why] += table.count
            tally.found += table.count
        elif isinstance(table, FilesRead):
            tally.files, tally.lost_files = tally.files + table.count, tally.lost_files + table.quarantined
        elif isinstance(table, LabelRows):
            tally.found += len(table.rows)
            outcomes.add(table, number)
        elif len(table):
            yield to_events(table, rules, number, tally)
            progress.advance(len(table))


def _nothing(kind: str, tally: Tally) -> ExportError:
    reasons = "; ".join(f"{count} x {why.reason}" for why, count in tally.left_out.most_common(3))
    return ExportError(f"{kind} export", "must give at least one event", remedy=f"Left out: {reasons or 'no row'}.")


def _summary(
    site: SiteFolder,
    name: str,
    finisher: Finisher,
    tally: Tally,
    outcomes: Outcomes,
    joined: Mapping[Why, int],
) -> RecordsSummary:
    notes = site_tables.read_all_notes(site)[name]
    return RecordsSummary(
        kind=notes.kind,
        rows=tally.rows,
        events=finisher.events,
        derived=finisher.counts[Why(parts.DERIVED, parts.BMI)],
        patients=finisher.patients,
        labels=outcomes.counts(),
        left_out=(*notes.left_out, *as_left_out(joined)),
        coverage=notes.coverage,
        site_events=pq.read_metadata(site.path / "events.parquet").num_rows,
    )
