"""How are scans imported that a table lists? A CSV of paths, and a mapping file that says what its columns mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import yaml

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
from client.ingest.listing import ListedSource, Table, column_error, eye_of, inside, open_table
from shared.errors import ConfigError
from shared.knobs import knob, load
from shared.site_folder import IMAGE_MODALITIES, IR, OCT

_NAMES_OF_COLUMNS = ("path", "patient", "eye", "acquired_at", "modality", "device", "pair", "quality")
_COLUMNS = (*_NAMES_OF_COLUMNS, "spacing_row", "spacing_column")
_MODALITIES = {"oct": OCT, "ir": IR, "infrared": IR, "infrared reflectance": IR}


@dataclass(frozen=True)
class ImageMapping:
    """The mapping file: which column holds what."""

    path: str = knob(help="column of the file's path within the export")
    patient: str = knob(help="column of the hospital's patient id")
    eye: str = knob(help="column of the eye: OD, OS, R, L, right, left, in any case; or see eye_values")
    acquired_at: str = knob(help="column of the date, or better date and time, of the scan")
    modality: str = knob("", "column of the modality: OCT or IR, in any case; or see modality_values")
    every_modality: str = knob("", "the modality of all, in place of a column", choices=["", *IMAGE_MODALITIES])
    device: str = knob("", "column of the device")
    every_device: str = knob("", "the device of all, in place of a column")
    pair: str = knob("", "column whose equal values join an OCT and an infrared scan of one eye")
    spacing_row: str = knob("", "column of the height of a pixel", unit="mm")
    spacing_column: str = knob("", "column of the width of a pixel", unit="mm")
    quality: str = knob("", "column of the quality that the device states")
    eye_values: dict[str, str] = knob({}, "further words for the eyes, each to R or L")
    modality_values: dict[str, str] = knob({}, "further words for the modalities, each to OCT or IR")
    time_format: str = knob("", "format of acquired_at, as of strptime; ISO 8601 when empty")
    time_zone: str = knob("", "the site's zone (IANA), to which times that state an offset from UTC are converted")
    table: str = knob("", "the table within the export; empty: the only .csv at its top")
    separator: str = knob(",", "between two cells", choices=[",", ";", "\t", "|"])
    encoding: str = knob("utf-8-sig", "encoding of the table, such as utf-8-sig or cp1252")

    def check_consistent(self, path: str) -> None:
        if bool(self.modality) == bool(self.every_modality):
            raise ConfigError(f"{path}modality", "must be given, or every_modality in its place")
        for name, allowed in (("eye_values", ("R", "L")), ("modality_values", IMAGE_MODALITIES)):
            for word, value in getattr(self, name).items():
                if value not in allowed:
                    raise ConfigError(f"{path}{name}.{word}", f"must be one of {', '.join(allowed)}", value=value)
        try:
            ZoneInfo(self.time_zone or "UTC")
            datetime.strptime(datetime(2001, 2, 3).strftime(self.time_format), self.time_format)
        except (ValueError, OSError, LookupError) as error:
            raise ConfigError(f"{path}time_zone and time_format", "must be known", value=str(error)) from None


def read_mapping(file: Path | None) -> ImageMapping:
    """The mapping file; raises ``ExportError`` where there is none or it is wrong."""
    if file is None:
        raise ExportError("mapping", "must be given", remedy="Name it by --mapping FILE; docs/imaging.md has one.")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        return load(ImageMapping, data or {}, f"{file.name}: ")
    except ConfigError as error:
        raise ExportError(error.name, error.rule, value=error.value, remedy=error.remedy) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ExportError(str(file), "must be YAML", value=str(error).splitlines()[0]) from None
    except OSError as error:
        raise ExportError(str(file), "must be readable", value=error.strerror) from None


def find(export: Path, mapping_file: Path | None) -> Iterator[Source]:
    """The files that the table lists, one source a row, and the table itself."""
    mapping = read_mapping(mapping_file)
    root = export if export.is_dir() else export.parent
    table = _table(export, mapping)
    yield ListedSource(
        table.relative_to(root).as_posix(), (table,), left_out=LeftOut(SKIPPED, "is the table of the scans")
    )
    with open_table(table, mapping.separator, mapping.encoding) as opened:
        places = _places(opened, mapping, table.name)
        for number, cells in opened.rows:
            row = None if cells is None else {name: cells[place] for name, place in places.items()}
            yield _source(row, f"{table.name}, row {number}", root, mapping)


def _table(export: Path, mapping: ImageMapping) -> Path:
    if export.is_file():
        return export
    if mapping.table:
        try:
            return export / inside(mapping.table)
        except LeftOutError:
            raise ExportError("table", "must lie inside the export", value=mapping.table) from None
    found = sorted(file for file in export.iterdir() if file.suffix.lower() == ".csv" and file.is_file())
    if len(found) != 1:
        remedy = "Name it in the mapping file, as table."
        raise ExportError("table", "must be named unless the export has one .csv", value=len(found), remedy=remedy)
    return found[0]


def _places(table: Table, mapping: ImageMapping, name: str) -> Mapping[str, int]:
    places = {}
    for setting in _COLUMNS:
        wanted = getattr(mapping, setting)
        if wanted:
            if wanted not in table.columns:
                raise column_error(f"mapping: {setting}", wanted, name, table.columns)
            places[setting] = table.columns.index(wanted)
    return places


def _source(row: Mapping[str, str] | None, name: str, root: Path, mapping: ImageMapping) -> ListedSource:
    files: tuple[Path, ...] = ()
    try:
        if row is None:
            raise LeftOutError(QUARANTINED, "is a row that does not fit the columns of the table")
        path = inside(row["path"])
        name, files = path.as_posix(), (root / path,)
        return ListedSource(name, files, scan=_scan(row, name, mapping))
    except LeftOutError as error:
        return ListedSource(name, files, left_out=error.left_out)


def _scan(row: Mapping[str, str], name: str, mapping: ImageMapping) -> Scan:
    """What a row says of its scan; raises ``LeftOutError`` where it does not say enough."""
    patient, eye = row["patient"], mapping.eye_values.get(row["eye"]) or eye_of(row["eye"])
    if not patient:
        raise LeftOutError(QUARANTINED, "has no patient")
    modality = mapping.every_modality or _modality(row["modality"], mapping)
    acquired_at = _time(row["acquired_at"], mapping)
    pair = row.get("pair")
    return Scan(
        patient=patient,
        # All of it: two exports may use the same path for different scans.
        key="\0".join([patient, eye, modality, acquired_at.isoformat(), name]),
        eye=eye,
        acquired_at=acquired_at,
        modality=modality,
        image=b"",
        device=mapping.every_device or row.get("device", ""),
        partner="\0".join(["pair", patient, eye, pair]) if pair else None,
        spacing_mm=_spacing(row),
        quality=_number(row.get("quality", "")),
    )


def _modality(word: str, mapping: ImageMapping) -> str:
    modality = mapping.modality_values.get(word) or _MODALITIES.get(word.casefold())
    if modality is None:
        raise LeftOutError(QUARANTINED, "has a modality that is neither OCT nor infrared")
    return modality


def _time(text: str, mapping: ImageMapping) -> datetime:
    """Without zone, in the site's; raises ``LeftOutError`` for what is no time in the stated format."""
    try:
        time = datetime.strptime(text, mapping.time_format) if mapping.time_format else datetime.fromisoformat(text)
        if time.tzinfo is None:
            return time
        if mapping.time_zone:
            return time.astimezone(ZoneInfo(mapping.time_zone)).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise LeftOutError(QUARANTINED, "has a date that cannot be read") from None
    raise LeftOutError(QUARANTINED, "has a time with an offset from UTC, and the mapping names no time_zone")


def _spacing(row: Mapping[str, str]) -> tuple[float, float] | None:
    sizes = _number(row.get("spacing_row", "")), _number(row.get("spacing_column", ""))
    return None if sizes[0] is None or sizes[1] is None else (sizes[0], sizes[1])


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read(source: Source, options: ScanOptions) -> Iterator[Scan | LeftOut]:
    """The one scan of a file that the table lists."""
    assert isinstance(source, ListedSource)
    if source.left_out is not None:
        raise LeftOutError(source.left_out.outcome, source.left_out.reason)
    assert source.scan is not None
    yield dataclasses.replace(source.scan, image=source.files[0].read_bytes())


IMAGE_FILES = ScanImporter(find, read)
