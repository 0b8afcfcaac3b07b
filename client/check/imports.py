"""What did the imports leave out, and why? From the site's own journals; names of files and codes stay there.

Nobody knows of how many patients the files and rows are that were left out, as that is often why they were. So they are
told as coarse shares, never as counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from client.check.suppression import Count
from client.check.tables import OTHER
from client.ingest.coverage import Coverage
from client.ingest.export import QUARANTINED, SKIPPED
from client.ingest.journal import IMPORTED, JournalSummary, read_journal
from client.ingest.part_notes import Notes
from client.ingest.parts import FURTHER_BIRTH, THERE_ALREADY
from client.ingest.site_tables import read_all_notes, read_coverage
from shared.errors import SiteError
from shared.site_folder import SiteFolder

T = TypeVar("T")
READABLE, UNREADABLE = "the study can read", "it cannot"
# Named on the page; others may be a site's own words.
_VOCABULARIES = ("SNOMED", "ICD10", "ICD9", "LOINC", "RXNORM", "ATC", "CPT4", "OPCS4", "SEX")
_RECORDS = "records"
_REPEATED = (THERE_ALREADY, FURTHER_BIRTH)  # meant for us, and there
_BANDS = ((0.01, "under 1 %"), (0.05, "1 to 5 %"), (0.2, "5 to 20 %"))


@dataclass(frozen=True)
class Shares:
    """A whole and how large some parts of it are, in words such as "1 to 5 %"."""

    name: str
    parts: Mapping[str, str]


@dataclass(frozen=True)
class Quarantined:
    """Of what was meant for import, the fractions that could not be used, over all imports.

    Attributes:
        files: of scans.
        record_files: of records, where they come in many files.
        rows: of records; of other exports than those of many files a row is all that there is.
    """

    files: float
    record_files: float
    rows: float


@dataclass(frozen=True)
class Imports:
    """What was counted at all imports of a site.

    Attributes:
        sources: of the files of each kind of export, the share skipped; of those not skipped, the share quarantined.
        left_out: what did not become a scan or an event, by kind and outcome, and reason: the share of the import.
        vocabularies: rows of records, by vocabulary, and by whether the study can read their code.
        bad_units: by feature, the fraction of its rows that was left out because of their unit.
    """

    sources: tuple[Shares, ...]
    left_out: tuple[Shares, ...]
    vocabularies: Count
    bad_units: Mapping[str, float]
    quarantined: Quarantined


def import_counts(site: SiteFolder, smallest: int) -> Imports:
    """What a site's journals tell; nothing where there are none, or damaged ones: the next import says so."""
    journal = _or(lambda: read_journal(site.path), JournalSummary())
    coverage = _or(lambda: read_coverage(site), None) or Coverage()
    no_notes: tuple[Notes, ...] = ()
    notes = _or(lambda: tuple(read_all_notes(site).values()), no_notes)
    reasons: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for (kind, outcome, reason), count in journal.reasons.items():
        reasons[kind, outcome][reason] += count
    for item in (item for one in notes for item in one.left_out):
        reasons[_RECORDS, item.outcome][item.reason] += item.count
    found = _found(journal, notes, reasons)
    return Imports(
        sources=tuple(_sources(journal)),
        left_out=tuple(
            Shares(f"{kind}: {outcome}", _shares(_without_rare(counts, smallest), found[kind]))
            for (kind, outcome), counts in sorted(reasons.items())
        ),
        vocabularies=_vocabularies(coverage),
        bad_units={
            name: one.bad_unit / (one.rows + one.bad_unit) for name, one in coverage.features.items() if one.bad_unit
        },
        quarantined=_quarantined(journal, notes),
    )


def _or(read: Callable[[], T], otherwise: T) -> T:
    try:
        return read()
    except (SiteError, OSError, ValueError):
        return otherwise


def band(share: float) -> str:
    """A share in words that are too coarse to count by."""
    if share <= 0:
        return "none"
    return next((words for above, words in _BANDS if share < above), "over 20 %")


def _sources(journal: JournalSummary) -> Iterable[Shares]:
    for kind in sorted({kind for kind, _ in journal.sources}):
        imported, skipped, quarantined = (
            journal.sources.get((kind, outcome), 0) for outcome in (IMPORTED, SKIPPED, QUARANTINED)
        )
        meant = imported + quarantined
        parts = {
            SKIPPED: band(_fraction(skipped, meant + skipped)),
            QUARANTINED: band(_fraction(quarantined, meant)),
        }
        yield Shares(kind, parts)


def _found(
    journal: JournalSummary, notes: Iterable[Notes], reasons: Mapping[tuple[str, str], Counter[str]]
) -> Counter[str]:
    """By kind, all that there was: of records the rows, of scans the files that were imported and what was left out."""
    found = Counter({_RECORDS: sum(one.found or sum(item.count for item in one.left_out) for one in notes)})
    for (kind, outcome), count in journal.sources.items():
        found[kind] += count if outcome == IMPORTED else 0
    for (kind, _), counts in reasons.items():
        found[kind] += sum(counts.values()) if kind != _RECORDS else 0
    return found


def _shares(counts: Mapping[str, int], whole: int) -> dict[str, str]:
    return {name: band(_fraction(count, whole)) for name, count in sorted(counts.items())}


def _without_rare(counts: Mapping[str, int], smallest: int) -> dict[str, int]:
    told: Counter[str] = Counter()
    for reason, count in counts.items():
        told[reason if count >= smallest else OTHER] += count  # one that occurs once could name somebody after all
    return told


def _quarantined(journal: JournalSummary, notes: Iterable[Notes]) -> Quarantined:
    outcomes: Counter[str] = Counter()
    for (_, outcome), count in journal.sources.items():
        outcomes[outcome] += count
    totals: Counter[str] = Counter()
    for one in notes:
        totals["files"] += one.files
        totals["lost files"] += one.lost_files
        skipped = sum(item.count for item in one.left_out if item.outcome == SKIPPED and item.reason not in _REPEATED)
        totals["rows"] += max(0, one.found - skipped)
        totals["lost rows"] += sum(item.count for item in one.left_out if item.outcome == QUARANTINED and one.found)
    return Quarantined(
        files=_fraction(outcomes[QUARANTINED], outcomes[IMPORTED] + outcomes[QUARANTINED]),
        record_files=_fraction(totals["lost files"], totals["files"]),
        rows=_fraction(totals["lost rows"], totals["rows"]),
    )


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _vocabularies(coverage: Coverage) -> Count:
    """Rows by vocabulary; a count belongs to at least as many patients as it says, as imports may share theirs.

    One partition, as all rows together are about as many as the events, which are told. Categories go by name, as
    suppression goes in their order, which must not follow the counts.
    """
    rows: dict[str, dict[str, int]] = {}
    patients: dict[str, dict[str, int]] = {}
    for vocabulary, (total, readable) in coverage.rows.items():
        name = vocabulary if vocabulary in _VOCABULARIES else OTHER
        known, unknown = coverage.patients.get(vocabulary, (0, 0))
        its_rows = rows.setdefault(name, {READABLE: 0, UNREADABLE: 0})
        its_patients = patients.setdefault(name, {READABLE: 0, UNREADABLE: 0})
        for part, count, at_least in ((READABLE, readable, known), (UNREADABLE, total - readable, unknown)):
            its_rows[part] += count
            its_patients[part] = max(its_patients[part], at_least)
    counts = tuple(
        Count(
            name,
            sum(parts.values()),
            max(patients[name].values()),
            (("code", tuple(Count(part, count, patients[name][part]) for part, count in sorted(parts.items()))),),
        )
        for name, parts in sorted(rows.items())
    )
    at_least = max((count.patients or 0 for count in counts), default=0)
    return Count("rows", sum(count.value for count in counts), at_least, (("vocabulary", counts),))
