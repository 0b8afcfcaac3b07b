"""Which kinds of export are there, and which options of an import serve them? Light, so that --help is quick."""

from __future__ import annotations

from collections.abc import Iterable

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
SERVES = {
    "mapping": ("csv", "images"),
    "again": tuple(SCANS),
    "b_scans": ("dicom", "heidelberg", "aireadi"),
    "mirror_left": tuple(SCANS),
    "pair_within_s": tuple(SCANS),
    "issuers": ("dicom",),
    "vocabulary": tuple(RECORDS),
    "extracted_at": tuple(RECORDS),
    "features": tuple(RECORDS),
    "where": ("csv",),
    "identifier_system": ("fhir",),
    "source_value": ("omop",),
}


def help_of(option: str, text: str) -> str:
    """The help of an option, with the kinds that it serves before it."""
    kinds = SERVES[option]
    groups = {tuple(SCANS): "Scans", tuple(RECORDS): "Records"}
    return f"{groups.get(kinds, ', '.join(kinds))}: {text}"


def check_options(kind: str, given: Iterable[str]) -> None:
    """Refuse what an import would leave unread.

    Args:
        given: names of the options that were typed, as in ``SERVES``; others serve every kind.

    Raises:
        ExportError: an unknown kind, or an option of which it has no use.
    """
    from client.ingest.export import ExportError  # with numpy

    if kind not in SCANS and kind not in RECORDS:
        raise ExportError("KIND", f"must be one of {', '.join([*SCANS, *RECORDS])}", value=kind)
    for option in given:
        kinds = SERVES.get(option, (kind,))
        if kind not in kinds:
            name = f"--{option.replace('_', '-')}"
            raise ExportError(name, f"must be left out: it serves {', '.join(kinds)}, not {kind}")
