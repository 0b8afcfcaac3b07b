"""Which exports can be imported, and how is each brought into a site folder?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from client.ingest.export import ExportError, ScanImporter, ScanOptions
from shared.site_folder import SiteFolder

if TYPE_CHECKING:
    import pandas as pd

    from client.ingest.export import LeftOut
    from client.ingest.outcomes import LabelRows
    from client.ingest.scans import ScanSummary

SCANS = {
    "dicom": "OCT volumes and infrared scans as DICOM files",
    "heidelberg": "Heidelberg exports: .vol, .E2E, XML with its images",
    "aireadi": "the folders of the AI-READI data set, by their manifests",
    "images": "a CSV file that lists PNG, JPEG or TIFF files, with a mapping",
}
RECORDS = {
    "csv": "tables, one row a visit or a value, with a mapping",
    "omop": "OMOP CDM 5.3 or 5.4, as CSV or parquet files or a zip of them",
    "fhir": "FHIR R4 bundles or NDJSON",
}


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
        kind: of ``SCANS`` or ``RECORDS``.
        mapping: what the columns of an export mean, for the kinds that need it.
        again: read scans anew that did not change since they were imported.

    Raises:
        ExportError: an unknown kind, or an export, mapping or option with which nothing can be imported.
        SiteError: no such site folder, or another import into it.
    """
    if not export.exists():
        raise ExportError(str(export), "must exist")
    if kind in SCANS:
        from client.ingest.scans import import_scans

        options = replace(scans, time_zone=site.dataset().time_zone)
        yield from _scan_lines(kind, import_scans(site, export, _importer(kind), kind, mapping, options, again=again))
    elif kind in RECORDS:
        yield from _import_records(kind, export, site, mapping, records)
    else:
        known = ", ".join([*SCANS, *RECORDS])
        raise ExportError("KIND", f"must be one of {known}", value=kind)


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
    from client.ingest.pseudonyms import open_pseudonyms
    from client.ingest.records import import_records
    from client.ingest.vocabulary import read_vocabulary

    summary = import_records(
        site,
        kind,
        export,
        _tables(kind, export, site.dataset().time_zone, mapping, options),
        read_vocabulary(options.vocabulary),
        open_pseudonyms(site.path),
        features=read_features(options.features),
        extracted_at=options.extracted_at,
    )
    yield from summary.lines()


def _tables(
    kind: str, export: Path, time_zone: str, mapping: Path | None, options: RecordOptions
) -> Iterable[pd.DataFrame | LeftOut | LabelRows]:
    if kind == "csv":
        from client.ingest.mapping import read_mapping
        from client.ingest.table import read_table

        if mapping is None:
            raise ExportError("--mapping", "must be given: the file that says what the columns are")
        read = read_mapping(mapping)
        where: dict[str, tuple[str, ...]] = {}
        for column, value in options.where:
            where[column] = (*where.get(column, ()), value)
        return read_table(export, replace(read, where=where or read.where), time_zone)
    if mapping is not None:
        raise ExportError("--mapping", f"must be left out: {kind} says itself what it holds")
    if kind == "omop":
        from client.ingest.omop import read_omop

        return read_omop(export, use_source_value=options.source_value)
    from client.ingest.fhir import read_fhir

    return read_fhir(export, identifier_system=options.identifier_system, time_zone=time_zone)


def _scan_lines(kind: str, summary: ScanSummary) -> Iterator[str]:
    for what, counts in (("files", summary.sources), ("scans", summary.scans)):
        yield (
            f"{kind}: {what}: {counts.imported} imported, {counts.unchanged} unchanged, "
            f"{counts.skipped} skipped, {counts.quarantined} quarantined"
        )
    for item in summary.reasons:
        yield f"{item.outcome}: {item.count} x {item.reason}"
    if summary.vanished:
        yield f"{summary.vanished} files of earlier imports are not in the export now; their scans stay"
    alone = ", ".join(f"{count} {modality} without a partner" for modality, count in sorted(summary.unpaired.items()))
    yield f"scans in the folder: {summary.pairs} pairs" + (f", {alone}" if alone else "")
