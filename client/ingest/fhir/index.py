"""Whose is a resource, and what must be known of others before it can be read?

Any file of an export may hold the patient or the encounter that a resource refers to, so all are read for these first.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from client.ingest.export import QUARANTINED, SKIPPED, ExportError, LeftOut, LeftOutError
from client.ingest.fhir.files import Resource, own_id, reference_id, resources
from client.ingest.fhir.json import Node, node, nodes, text
from client.ingest.fhir.times import birth, moments
from client.ingest.progress import Meter

CLINICAL = ("Patient", "Observation", "Condition")
_NOT_CURRENT = ("old", "temp")  # hl7.org/fhir/R4/valueset-identifier-use.html
_LONGEST_ID = 200


@dataclass(frozen=True)
class Index:
    """What is known before the resources are read.

    Attributes:
        system: of the identifier that stands for a patient; "" where the resource id does.
        zone: into which times with an offset are turned.
        names: ids of patients and encounters by the URL of their bundle, where it does not end in the id.
        identified: ids of patients by ``system|value``; None where two have it.
        values: the identifier of the stated system, by the patient's id; None where there are several.
        births: by the patient's id.
        encounter_ends: by the encounter's id.
    """

    system: str = ""
    zone: ZoneInfo | None = None
    names: dict[str, str] = field(default_factory=dict)
    identified: dict[str, str | None] = field(default_factory=dict)
    values: dict[str, str | None] = field(default_factory=dict)
    births: dict[str, datetime] = field(default_factory=dict)
    encounter_ends: dict[str, datetime] = field(default_factory=dict)


def build_index(files: Iterable[Path], system: str, zone: ZoneInfo | None, meter: Meter) -> Index:
    """Read every file for patients and encounters; resources that cannot be read are told of later.

    Raises:
        ExportError: no clinical resource at all, or no patient with an identifier of the stated system.
    """
    index, kinds = Index(system, zone), set()
    for file in files:
        for resource in resources(file, meter):
            if isinstance(resource, LeftOut):
                continue
            kinds.add(resource.kind)
            try:
                _note(resource, index)
            except LeftOutError:
                continue
    if not kinds.intersection(CLINICAL):
        remedy = "Give R4 bundles (.json) or a bulk export (.ndjson)."
        raise ExportError("FHIR export", f"must hold one of {', '.join(CLINICAL)}", remedy=remedy)
    if system and "Patient" in kinds and not index.values:
        remedy = "Look up Patient.identifier.system in the export."
        raise ExportError("identifier system", "must be one that patients have", value=system, remedy=remedy)
    return index


def _note(resource: Resource, index: Index) -> None:
    """Mutates ``index``, as only ``build_index`` may."""
    if resource.kind not in ("Patient", "Encounter"):
        return
    key = own_id(resource)
    if key is None:
        return
    if resource.url is not None and reference_id(resource.url, resource.kind, {}) != key:
        index.names[resource.url] = key
    if resource.kind == "Patient":
        _note_patient(key, resource.body, index)
        return
    end = text(node(resource.body, "period") or {}, "end")
    if end is not None:
        ended = moments(end, index.zone)[1]
        index.encounter_ends[key] = max(ended, index.encounter_ends.get(key, ended))


def _note_patient(key: str, body: Node, index: Index) -> None:
    for identifier in nodes(body, "identifier"):
        name = _name(identifier)
        if name is not None:
            index.identified[name] = key if index.identified.get(name, key) == key else None
    if index.system:
        value = _identifier(nodes(body, "identifier"), index.system)
        if value is not None:
            index.values[key] = value if index.values.get(key, value) == value else None
    born = text(body, "birthDate")
    if born is not None:
        index.births[key] = birth(born)


def _name(identifier: Node) -> str | None:
    """``system|value``, as in a conditional reference; None without a value."""
    value = text(identifier, "value")
    return None if value is None else f"{text(identifier, 'system') or ''}|{value}"


def _identifier(identifiers: list[Node], system: str) -> str | None:
    """The one current value of a system; the one for usual or official use where there are several."""
    current = [item for item in identifiers if text(item, "system") == system and text(item, "use") not in _NOT_CURRENT]
    for use in ("usual", "official"):
        if len({text(item, "value") for item in current}) > 1:
            current = [item for item in current if text(item, "use") == use] or current
    values = {text(item, "value") for item in current} - {None}
    return values.pop() if len(values) == 1 else None


def patient_of(subject: Node | None, index: Index) -> tuple[str, str]:
    """The id of the patient that a reference is to, and what stands for the patient in the records.

    Raises:
        LeftOutError: it is to none.
    """
    if subject is None:
        raise LeftOutError(QUARANTINED, "no reference to a patient")
    identifier = node(subject, "identifier") or {}
    value = text(identifier, "value") if index.system and text(identifier, "system") == index.system else None
    if value is not None:  # told with the reference: the patient need not be in the export
        return index.identified.get(f"{index.system}|{value}") or "", _checked(value)
    key = _referred(subject, index)
    return key, known_as(key, index)


def known_as(key: str, index: Index) -> str:
    """What stands for a patient in the records: the id, or the identifier of the stated system."""
    value = index.values.get(key) if index.system else key
    if value is None:
        raise LeftOutError(QUARANTINED, "the patient has not just one identifier of the stated system")
    return _checked(value)


def _checked(value: str) -> str:
    if len(value) > _LONGEST_ID:
        raise LeftOutError(QUARANTINED, f"the patient's id has more than {_LONGEST_ID} characters")
    return value


def _referred(subject: Node, index: Index) -> str:
    reference = text(subject, "reference")
    if reference is None:
        name = _name(node(subject, "identifier") or {})
    elif "Patient?identifier=" in reference:
        name = urllib.parse.unquote(reference.split("?identifier=")[1].split("&")[0])
    else:
        key = reference_id(reference, "Patient", index.names)
        if key is None:
            raise LeftOutError(SKIPPED, "about something other than a patient of the export's")
        return key
    found = index.identified.get(name) if name else None
    if found is None:
        raise LeftOutError(QUARANTINED, "a patient who is named by an identifier that not just one patient has")
    return found


def encounter_end(reference: Node | None, index: Index) -> datetime | None:
    """When the encounter ended in which a resource was made; None where that is not known."""
    written = text(reference or {}, "reference")
    key = reference_id(written, "Encounter", index.names) if written else None
    return index.encounter_ends.get(key) if key else None
