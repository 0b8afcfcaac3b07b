"""How are scans of the AI-READI layout imported? Its manifests say whose, which eye and which infrared scan.

Columns as in the data set's documentation (docs.aireadi.org: retinal OCT, retinal photography) and in the manifests of
its releases 2 and 3:

- ``retinal_oct/manifest.tsv``: person_id, manufacturer, manufacturers_model_name, anatomic_region, imaging ("OCT"),
  laterality, height, width, number_of_frames, pixel_spacing, slice_thickness, sop_instance_uid, filepath,
  reference_instance_uid (of the infrared scan), reference_filepath. Release 1 called the reference
  reference_retinal_photography_image_instance_uid, and the person participant_id.
- ``retinal_photography/manifest.tsv``: person_id, manufacturer, manufacturers_model_name, laterality, anatomic_region,
  imaging ("Infrared Reflectance", "Color Photography", "Autofluorescence"), height, width, color_channel_dimension,
  sop_instance_uid, filepath.

Paths begin with a slash and are meant from the top of the data set; what is not known is written as "Unknown",
"Not reported", "Not provided". Scanners write the eye in either case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.ingest.export import (
    QUARANTINED,
    SKIPPED,
    ExportError,
    LeftOut,
    LeftOutError,
    Scan,
    ScanImporter,
    ScanOptions,
    Source,
)
from client.ingest.listing import Table, column_error, eye_of, inside, open_table
from shared.site_folder import IR, OCT

_MANIFESTS = ("retinal_oct/manifest.tsv", "retinal_photography/manifest.tsv")
_NEEDED = {  # and what earlier releases called it
    "person_id": ("person_id", "participant_id"),
    "laterality": ("laterality",),
    "imaging": ("imaging",),
    "sop_instance_uid": ("sop_instance_uid",),
    "filepath": ("filepath",),
}
_USED = {
    "manufacturer": ("manufacturer",),
    "manufacturers_model_name": ("manufacturers_model_name",),
    "reference_instance_uid": ("reference_instance_uid", "reference_retinal_photography_image_instance_uid"),
}
_UNKNOWN = {"", "unknown", "not reported", "not provided", "not available", "none", "nan", "n/a", "tbd"}
_MODALITIES = {"oct": OCT, "infrared reflectance": IR, "infrared": IR, "ir": IR}

ReadFile = Callable[[Path, ScanOptions], Iterator["Scan | LeftOut"]]


@dataclass(frozen=True)
class ManifestSource(Source):
    """A DICOM file with what the manifest says of it.

    Attributes:
        uid: SOP instance UID.
        partner: that of the infrared scan of an OCT.
        left_out: why the file is not to be opened.
    """

    patient: str = ""
    eye: str = ""
    modality: str = ""
    uid: str = ""
    device: str = ""
    partner: str | None = None
    left_out: LeftOut | None = None


def find(export: Path, mapping: Path | None = None) -> Iterator[Source]:
    """The files that the manifests list, and the manifests themselves."""
    manifests = [export / name for name in _MANIFESTS if (export / name).is_file()]
    if not manifests:
        remedy = f"Point to the folder that holds {' and '.join(_MANIFESTS)}."
        raise ExportError(str(export), "must hold a manifest", remedy=remedy)
    for manifest in manifests:
        name = manifest.relative_to(export).as_posix()
        yield ManifestSource(name, (manifest,), left_out=LeftOut(SKIPPED, "is a manifest"))
        with open_table(manifest, "\t") as table:
            places = _places(table, name)
            for number, cells in table.rows:
                row = None if cells is None else {column: _known(cells[place]) for column, place in places.items()}
                yield _source(row, f"{name}, row {number}", export)


def _places(table: Table, name: str) -> Mapping[str, int]:
    columns = [column.casefold() for column in table.columns]
    places = {}
    for column, names in {**_NEEDED, **_USED}.items():
        there = [columns.index(other) for other in names if other in columns]
        if there:
            places[column] = there[0]
        elif column in _NEEDED:
            raise column_error(f"{name}: {column}", column, name, table.columns)
    return places


def _known(cell: str) -> str:
    return "" if cell.casefold() in _UNKNOWN else cell


def _source(row: Mapping[str, str] | None, name: str, export: Path) -> ManifestSource:
    source = ManifestSource(name, ())
    try:
        if row is None:
            raise LeftOutError(QUARANTINED, "is a row that does not fit the columns of the manifest")
        path = inside(row["filepath"].lstrip("/"))
        source = ManifestSource(path.as_posix(), (export / path,))
        modality = _MODALITIES.get(row["imaging"].casefold())
        if modality is None:
            raise LeftOutError(SKIPPED, "is neither an OCT nor an infrared scan")
        if not row["person_id"] or not row["sop_instance_uid"]:
            raise LeftOutError(QUARANTINED, "has no patient or no SOP instance UID in the manifest")
        return dataclasses.replace(
            source,
            patient=row["person_id"],
            eye=eye_of(row["laterality"]),
            modality=modality,
            uid=row["sop_instance_uid"],
            device=" ".join([row.get("manufacturer", ""), row.get("manufacturers_model_name", "")]).strip(),
            partner=(row.get("reference_instance_uid") or None) if modality == OCT else None,
        )
    except LeftOutError as error:
        return dataclasses.replace(source, left_out=error.left_out)


def read(source: Source, options: ScanOptions, read_file: ReadFile | None = None) -> Iterator[Scan | LeftOut]:
    """The scans of one file; who and which eye as the manifest says.

    Args:
        read_file: reads a DICOM file; ``client.ingest.dicom.read_dicom`` when None.
    """
    assert isinstance(source, ManifestSource)
    if source.left_out is not None:
        raise LeftOutError(source.left_out.outcome, source.left_out.reason)
    for number, item in enumerate((read_file or _read_dicom)(source.files[0], options)):
        if isinstance(item, LeftOut):
            yield item
        elif item.modality != source.modality:
            yield LeftOut(QUARANTINED, "is of another modality than its manifest says")
        elif item.key.partition("/")[0] != source.uid:
            yield LeftOut(QUARANTINED, "has another SOP instance UID than its manifest says")
        else:
            yield _told(item, number, source)


def _read_dicom(file: Path, options: ScanOptions) -> Iterator[Scan | LeftOut]:
    from client.ingest.dicom import read_dicom  # slow to import, and only some sites need it

    return read_dicom(file, options)


def _told(scan: Scan, number: int, source: ManifestSource) -> Scan:
    """A scan with what the manifest knows better; an infrared scan has the key by which its OCT names it."""
    key = source.uid if source.modality == IR and not number else scan.key
    device = source.device or scan.device
    return dataclasses.replace(
        scan, patient=source.patient, eye=source.eye, key=key, device=device, partner=source.partner
    )


AIREADI = ScanImporter(find, read)
