"""Which exports can be imported, and how is each brought into a site folder?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from client.ingest.export import QUARANTINED, ExportError, ScanImporter, ScanOptions
from client.ingest.options import SCANS
from shared.site_folder import SiteFolder

if TYPE_CHECKING:
    import pandas as pd

    from client.ingest.export import FilesRead, LeftOut
    from client.ingest.outcomes import LabelRows
    from client.ingest.progress import Tell
    from client.ingest.scans import ScanSummary


@dataclass(frozen=True)
class RecordOptions:
    """What a data engineer may choose about records, on the command line.

    Attributes:
        vocabulary: the site's own table of codes, which wins over those that come with this code.
        extracted_at: ISO date of the extract; else the latest date in it.
        where: of a CSV, rows to take: by column, the values that it must have; in the place of the mapping's.
        identifier_system: of FHIR, whose identifier names the patient; else the resource's own id does.
        source_value: of OMOP, ``person_source_value`` names the patient; else ``person_id`` does.
        features: the study's list, by which coverage is told.
    """

    vocabulary: Path | None = None
    extracted_at: str = ""
    where: tuple[tuple[str, str], ...] = ()
    identifier_system: str = ""
    source_value: bool = False
    features: Path | None = None


def import_export(
    kind: str,
    export: Path,
    site: SiteFolder,
    mapping: Path | None,
    scans: ScanOptions,
    records: RecordOptions,
    again: bool = False,
) -> Iterator[str]:
    """Bring an export into a site folder; lines that say what became of it.

    Args:
        kind: one that ``check_options`` takes with what was typed.
        mapping: what the columns of an export mean, for the kinds that need it.
        again: read scans anew that did not change since they were imported.

    Raises:
        ExportError: an export, mapping or option with which nothing can be imported, or scans of which none came.
        SiteError: no such site folder, or another import into it.
    """
    if not export.exists():
        raise ExportError(str(export), "must exist")
    if kind in SCANS:
        from client.ingest.scans import import_scans

        options = replace(scans, time_zone=site.dataset().time_zone)
        summary = import_scans(site, export, _importer(kind), kind, mapping, options, again=again)
        yield from _scan_lines(kind, summary, site.path)
        _check_use(kind, export, summary)
    else:
        yield from _import_records(kind, export, site, mapping, records)


def _importer(kind: str) -> ScanImporter:
    # Each brings libraries of its own, which are loaded when they are needed.
    if kind == "dicom":
        from client.ingest.dicom import DICOM

        return DICOM
    if kind == "heidelberg":
        from client.ingest.heidelberg import HEIDELBERG

        return HEIDELBERG
    if kind == "aireadi":
        from client.ingest.aireadi import AIREADI

        return AIREADI
    from client.ingest.images import IMAGE_FILES

    return IMAGE_FILES


def _import_records(
    kind: str, export: Path, site: SiteFolder, mapping: Path | None, options: RecordOptions
) -> Iterator[str]:
    from client.feature_list import read_features
    from client.ingest.progress import Progress
    from client.ingest.pseudonyms import open_pseudonyms
    from client.ingest.records import import_records
    from client.ingest.vocabulary import read_vocabulary

    progress = Progress("rows")
    summary = import_records(
        site,
        kind,
        export,
        _tables(kind, export, site.dataset().time_zone, mapping, options, progress.read),
        read_vocabulary(options.vocabulary),
        open_pseudonyms(site.path),
        features=read_features(options.features),
        extracted_at=options.extracted_at,
        progress=progress,
    )
    yield from summary.lines()


def _tables(
    kind: str, export: Path, time_zone: str, mapping: Path | None, options: RecordOptions, tell: Tell
) -> Iterable[pd.DataFrame | LeftOut | FilesRead | LabelRows]:
    if kind == "csv":
        from client.ingest.mapping import read_mapping
        from client.ingest.table import read_table

        if mapping is None:
            raise ExportError("--mapping", "must be given: the file that says what the columns are")
        read = read_mapping(mapping)
        where: dict[str, tuple[str, ...]] = {}
        for column, value in options.where:
            where[column] = (*where.get(column, ()), value)
        return read_table(export, replace(read, where=where or read.where), time_zone, tell=tell)
    if kind == "omop":
        from client.ingest.omop import read_omop

        return read_omop(export, use_source_value=options.source_value, tell=tell)
    from client.ingest.fhir import read_fhir

    return read_fhir(export, identifier_system=options.identifier_system, time_zone=time_zone, tell=tell)


def _check_use(kind: str, export: Path, summary: ScanSummary) -> None:
    """Raise ``ExportError`` where no scan came of an export, now or earlier: it is hardly the one that was meant."""
    if summary.scans.imported or summary.scans.unchanged or summary.vanished:
        return
    if summary.sources.quarantined or summary.scans.quarantined:
        raise ExportError(str(export), "must give at least one scan", remedy="The reasons are above.")
    remedy = "Nothing there is what this KIND reads: choose another KIND or PATH."
    raise ExportError(str(export), f"must hold {SCANS[kind]}", remedy=remedy)


def _scan_lines(kind: str, summary: ScanSummary, folder: Path) -> Iterator[str]:
    for what, counts in (("files", summary.sources), ("scans", summary.scans)):
        yield (
            f"{kind}: {what}: {counts.imported} imported, {counts.unchanged} unchanged, "
            f"{counts.skipped} skipped, {counts.quarantined} quarantined"
        )
    yield from map(str, summary.reasons)
    if any(item.outcome == QUARANTINED for item in summary.reasons):
        yield f"which files are quarantined: fedretina site left-out {folder}"
    if summary.vanished:
        yield f"{summary.vanished} files of earlier imports are not in the export now; their scans stay"
    alone = ", ".join(f"{count} {modality} without a partner" for modality, count in sorted(summary.unpaired.items()))
    yield f"scans in the folder: {summary.pairs} pairs" + (f", {alone}" if alone else "")
