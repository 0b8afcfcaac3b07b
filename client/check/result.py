"""What does ``fedretina site check`` find? Verdict, faults, concerns and figures of one site folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from client.check.cases import case_counts
from client.check.concerns import (
    Concern,
    case_concerns,
    feature_concerns,
    patient_concerns,
    reading_concerns,
    scan_concerns,
)
from client.check.decoding import decoding_counts, unreadable
from client.check.faults import all_faults
from client.check.imports import Imports, Shares, import_counts
from client.check.meds_rules import meds_concerns
from client.check.patients import patient_counts
from client.check.records import FeatureFigure, event_counts, feature_figures, years_of
from client.check.scans import pairing_counts, scan_counts, spacing_quantiles
from client.check.suppression import Cell, Count, shown
from client.check.tables import Tables, read_tables
from client.check.thumbnails import Thumbnail, draw_thumbnails
from client.feature_list import read_features
from client.features import BIRTH
from shared.config import Features
from shared.errors import SiteError
from shared.site_folder import SiteFolder

PASS, WARN, FAIL = "pass", "warn", "fail"
EXIT_CODES = {PASS: 0, WARN: 1, FAIL: 2}


@dataclass(frozen=True)
class Figures:
    """What is counted, small counts hidden already.

    Attributes:
        pairing: visits of an eye with an OCT, with an infrared scan or without.
        paired_at_least: of these, where it is all that may be told.
        spacing_mm: by modality and axis, quantiles over patients.
        years: first and last year with scans, and with events, of enough patients.
        imports: shares of the files of each kind of import, by outcome; ``left_out``: by kind, outcome and reason.
        vocabularies: rows of imported records by vocabulary, and by whether the study can read their code.
        decoding: scans that can be read or not; None where nobody asked.
    """

    patients: Cell
    scans: Cell
    pairing: Cell
    paired_at_least: float | None
    events: Cell
    spacing_mm: dict[str, dict[str, dict[str, float]]]
    features: tuple[FeatureFigure, ...]
    tasks: tuple[Cell, ...]
    years: dict[str, tuple[int, int] | None]
    horizons_days: dict[str, int]
    imports: tuple[Shares, ...]
    vocabularies: tuple[Cell, ...]
    left_out: tuple[Shares, ...]
    decoding: Cell | None


@dataclass(frozen=True)
class CheckResult:
    """What was found.

    Attributes:
        faults: of the contract, as the data engineer at the site sees them: they may name files and codes.
        thumbnails: scans of patients, only where asked for; never written to ``check.json``.
    """

    site: str
    smallest_cell: int
    faults: tuple[SiteError, ...]
    concerns: tuple[Concern, ...]
    figures: Figures
    thumbnails: tuple[Thumbnail, ...] = field(default=(), repr=False)

    @property
    def verdict(self) -> str:
        if self.faults or any(concern.fails for concern in self.concerns):
            return FAIL
        return WARN if self.concerns else PASS

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


def check_folder(
    folder: Path,
    study_features: Features | None = None,
    thumbnails: bool = False,
    images: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CheckResult:
    """Look at a whole site folder; nothing in it is changed.

    Args:
        study_features: of the study to serve; None: the reproduced study's.
        thumbnails: take some scans for the page.
        images: decode every scan.
        progress: is told how many scans of how many are decoded.

    Raises:
        SiteError: there is no such folder.
    """
    if not folder.is_dir():
        raise SiteError(str(folder), "must be a site folder", remedy="Make one: fedretina site init DIR.")
    site, features = SiteFolder(folder), study_features or read_features()
    faults, tables = tuple(all_faults(site)), read_tables(site)
    imports = import_counts(site, tables.settings.smallest_cell)
    decoded = decoding_counts(site, tables, progress) if images else None
    figures = _figures(tables, features, imports, decoded)
    concerns = tuple(_concerns(site, tables, figures, imports, decoded))
    pictures = draw_thumbnails(site, tables.images) if thumbnails else ()
    return CheckResult(tables.dataset.site, tables.settings.smallest_cell, faults, concerns, figures, pictures)


def _figures(
    tables: Tables,
    features: Features,
    imports: Imports,
    decoded: Count | None,
) -> Figures:
    smallest, images = tables.settings.smallest_cell, tables.images
    dated = tables.events[tables.events["code"] != BIRTH].dropna(subset="time")
    tasks, (pairing, paired_at_least) = case_counts(tables), pairing_counts(tables)
    return Figures(
        patients=shown(patient_counts(tables), smallest),
        scans=shown(scan_counts(tables), smallest),
        pairing=shown(pairing, smallest),
        paired_at_least=paired_at_least,
        events=shown(event_counts(tables, features), smallest),
        spacing_mm=spacing_quantiles(tables),
        features=feature_figures(tables, features),
        tasks=tuple(shown(task, smallest) for task in tasks),
        years={
            "scans": years_of(images["acquired_at"], images["subject_id"], smallest),
            "events": years_of(dated["time"], dated["subject_id"], smallest),
        },
        horizons_days={task.name: days for task in tasks if (days := tables.dataset.horizons_days.get(task.name))},
        imports=imports.sources,
        vocabularies=shown(imports.vocabularies, smallest).group("vocabulary"),
        left_out=imports.left_out,
        decoding=None if decoded is None else shown(decoded, smallest),
    )


def _concerns(
    site: SiteFolder, tables: Tables, figures: Figures, imports: Imports, decoded: Count | None
) -> Iterator[Concern]:
    bad = unreadable(decoded) / decoded.value if decoded is not None and decoded.value else 0.0
    limit = tables.settings.quarantine_limit
    yield from patient_concerns(figures.patients)
    yield from scan_concerns(figures.scans, figures.pairing, figures.paired_at_least)
    yield from reading_concerns(imports.quarantined, figures.decoding, bad, limit)
    yield from feature_concerns(figures.features, imports.bad_units)
    yield from case_concerns(figures.tasks)
    yield from meds_concerns(site, tables.events)


def lines(result: CheckResult) -> list[str]:
    """For the terminal of the site: every fault as it is, then what to look at, then the verdict."""
    told = [f"fault: {fault}" for fault in result.faults]
    told += [f"look at: {each.name} {each.rule}, got {each.value}. {each.remedy}" for each in result.concerns]
    figures = result.figures
    counts = ", ".join(f"{each.count} {each.name}" for each in (figures.patients, figures.scans, figures.events))
    return [*told, f"{result.site or 'site without a name'}: {counts}: {result.verdict}"]
