"""How does a FHIR R4 export become events?

Every file is read twice: first for the patients and encounters that resources of other files refer to, then for its
events. How codes, times and references are taken is told in docs/records.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pandas as pd

from client.ingest.export import QUARANTINED, RECORDS, ExportError, FilesRead, LeftOut, LeftOutError
from client.ingest.fhir.conditions import read_condition
from client.ingest.fhir.events import Row, read_observation, read_patient
from client.ingest.fhir.files import Resource, fhir_files, resources
from client.ingest.fhir.index import Index, build_index
from client.ingest.progress import Meter, Tell

READERS: Mapping[str, Callable[[Resource, Index], list[Row | LeftOut]]] = {
    "Patient": read_patient,
    "Observation": read_observation,
    "Condition": read_condition,
}
Yielded = pd.DataFrame | LeftOut | FilesRead
_READINGS = 2  # of every file
_ROWS = 50_000  # of a table
_TYPES = {"patient": "str", "time": "datetime64[us]", "code": "str", "value": "float64", "unit": "str"}


def read_fhir(
    export: Path, *, identifier_system: str = "", time_zone: str = "", tell: Tell | None = None
) -> Iterator[Yielded]:
    """Tables of ``RECORDS``, and what was left out, with counts; last, of how many files.

    Resources of other kinds than are read are passed over.

    Args:
        export: a .json or .ndjson file, or a folder of them.
        identifier_system: a patient's id is the ``Patient.identifier`` of this system, where that is the number under
            which the hospital's scans know them, and not the resource's id.
        time_zone: IANA name of the site's zone, into which times with an offset are turned; "" drops the offset.
        tell: how many bytes of how many are read.

    Raises:
        ExportError: nothing to be read, no such zone, or no patient with an identifier of that system.
    """
    zone = _zone(time_zone)
    files, left_out = fhir_files(export)
    meter = Meter(_READINGS * sum(file.stat().st_size for file in files), tell)
    index = build_index(files, identifier_system, zone, meter)
    left: Counter[tuple[str, str]] = Counter()
    rows: list[Row] = []
    for item in left_out:
        left[item.outcome, item.reason] += item.count
    lost = 0
    for file in files:
        told = damaged = False
        for resource in resources(file, meter):
            told |= not isinstance(resource, LeftOut)
            damaged |= isinstance(resource, LeftOut) and resource.outcome == QUARANTINED
            for found in [resource] if isinstance(resource, LeftOut) else _read(resource, index):
                if isinstance(found, LeftOut):
                    left[found.outcome, found.reason] += found.count
                else:
                    rows.append(found)
            if len(rows) >= _ROWS:
                yield _table(rows)
                rows = []
        lost += damaged and not told
    if rows:
        yield _table(rows)
    yield from (LeftOut(outcome, reason, count) for (outcome, reason), count in sorted(left.items()))
    yield FilesRead(len(files), lost)


def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ExportError("time zone", "must be an IANA name, such as Europe/Vienna", value=name) from None


def _read(resource: Resource, index: Index) -> list[Row | LeftOut]:
    """The events of a resource; all of them or, where it breaks FHIR, none."""
    if resource.kind not in READERS:
        return []
    try:
        items = READERS[resource.kind](resource, index)
    except LeftOutError as error:
        items = [error.left_out]
    return [
        LeftOut(item.outcome, f"{resource.kind}: {item.reason}") if isinstance(item, LeftOut) else item
        for item in items
    ]


def _table(rows: list[Row]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(RECORDS)).astype(_TYPES)
