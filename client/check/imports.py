"""What did the imports leave out, and why? Counts of the site's own journals; names of files and codes stay there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from client.check.suppression import Count
from client.check.tables import OTHER
from client.ingest.coverage import Coverage
from client.ingest.export import QUARANTINED, LeftOut
from client.ingest.journal import IMPORTED, JournalSummary, read_journal
from client.ingest.site_tables import read_coverage, read_left_out
from shared.errors import SiteError
from shared.site_folder import SiteFolder

T = TypeVar("T")
READABLE, UNREADABLE = "the study can read", "it cannot"
# Named on the page; others may be a site's own words.
_VOCABULARIES = ("SNOMED", "ICD10", "ICD9", "LOINC", "RXNORM", "ATC", "CPT4", "OPCS4", "SEX")


@dataclass(frozen=True)
class Imports:
    """What was counted at all imports of a site.

    Attributes:
        sources: files of each kind of export, by outcome.
        left_out: what did not become a scan or an event, by kind and outcome, and reason.
        vocabularies: rows of records, by whether the study can read their code.
        bad_units: by feature, the fraction of its rows that was left out because of their unit.
    """

    sources: tuple[Count, ...] = ()
    left_out: tuple[Count, ...] = ()
    vocabularies: tuple[Count, ...] = ()
    bad_units: Mapping[str, float] | None = None

    @property
    def quarantined(self) -> float:
        """Of the files that were meant for import, the fraction that could not be used."""
        totals: dict[str, int] = defaultdict(int)
        for source in self.sources:
            for _, outcomes in source.groups:
                for outcome in outcomes:
                    totals[outcome.name] += outcome.value
        meant = totals[IMPORTED] + totals[QUARANTINED]
        return totals[QUARANTINED] / meant if meant else 0.0


def import_counts(site: SiteFolder, smallest: int) -> Imports:
    """What a site's journals tell; nothing where there are none, or damaged ones: the next import says so."""
    journal = _or(lambda: read_journal(site.path), JournalSummary())
    coverage = _or(lambda: read_coverage(site), None) or Coverage()
    reasons: dict[str, dict[str, int]] = defaultdict(dict)
    for (kind, outcome, reason), count in journal.reasons.items():
        _add(reasons[f"{kind}: {outcome}"], reason, count, smallest)
    nothing: tuple[LeftOut, ...] = ()
    for item in _or(lambda: read_left_out(site), nothing):
        _add(reasons[f"records: {item.outcome}"], item.reason, item.count, smallest)
    kinds: dict[str, dict[str, int]] = defaultdict(dict)
    for (kind, outcome), count in journal.sources.items():
        kinds[kind][outcome] = count
    return Imports(
        sources=_counts(kinds, "outcome"),
        left_out=_counts(reasons, "reason"),
        vocabularies=_counts(_vocabularies(coverage), "code"),
        bad_units={
            name: one.bad_unit / (one.rows + one.bad_unit) for name, one in coverage.features.items() if one.bad_unit
        },
    )


def _or(read: Callable[[], T], otherwise: T) -> T:
    try:
        return read()
    except (SiteError, OSError, ValueError):
        return otherwise


def _add(reasons: dict[str, int], reason: str, count: int, smallest: int) -> None:
    name = reason if count >= smallest else OTHER  # one that occurs once could name somebody after all
    reasons[name] = reasons.get(name, 0) + count


def _vocabularies(coverage: Coverage) -> dict[str, dict[str, int]]:
    rows: dict[str, dict[str, int]] = {}
    for vocabulary, (total, readable) in coverage.rows.items():
        parts = rows.setdefault(vocabulary if vocabulary in _VOCABULARIES else OTHER, {READABLE: 0, UNREADABLE: 0})
        parts[READABLE] += readable
        parts[UNREADABLE] += total - readable
    return rows


def _counts(tables: Mapping[str, Mapping[str, int]], group: str) -> tuple[Count, ...]:
    """A count a table; categories by name, as suppression goes in their order, which must not follow the counts."""
    return tuple(
        Count(name, sum(parts.values()), groups=((group, tuple(Count(part, n) for part, n in sorted(parts.items()))),))
        for name, parts in sorted(tables.items())
    )
