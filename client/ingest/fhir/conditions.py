"""When was a condition recorded, and when did it begin?

Features gate on when it was recorded. A time before that would let a model see what nobody had written down yet.
"""

from __future__ import annotations

from datetime import datetime

from client.ingest.export import QUARANTINED, SKIPPED, LeftOut, LeftOutError
from client.ingest.fhir.concepts import code_of
from client.ingest.fhir.events import NAN, Row
from client.ingest.fhir.files import Resource
from client.ingest.fhir.index import Index, encounter_end, patient_of
from client.ingest.fhir.json import Node, node, nodes, number, text
from client.ingest.fhir.times import age_moments, moments
from shared.config import ONSET

_NOT_THERE = {"refuted", "entered-in-error", "differential"}
_ASSERTED = "http://hl7.org/fhir/StructureDefinition/condition-assertedDate"


def read_condition(resource: Resource, index: Index) -> list[Row | LeftOut]:
    """The condition at the time at which it was recorded, and its onset."""
    body = resource.body
    if _verification(body) & _NOT_THERE:
        raise LeftOutError(SKIPPED, "refuted, entered in error, or one of several that it may be")
    code = code_of(node(body, "code"))
    key, patient = patient_of(node(body, "subject"), index)
    recorded, onset = _recorded(body, index), _onset(body, key, index)
    rows: list[Row | LeftOut] = []
    if recorded is not None:
        rows.append((patient, recorded, code, NAN, ""))
    if onset is not None and recorded is not None and onset[0] > recorded:
        # Kept, one stroke would be two: one at each date.
        rows.append(LeftOut(QUARANTINED, "an onset later than when it was recorded; only the latter is kept"))
    elif onset is not None:
        known_by = onset[1] if recorded is None else min(onset[1], recorded)
        rows.append((patient, known_by, f"{ONSET}{code}", NAN, ""))
    if recorded is None:
        kept = "only its onset is kept" if rows else "nor when it began"
        rows.append(LeftOut(SKIPPED, f"nobody knows when it was recorded: {kept}"))
    return rows


def _verification(body: Node) -> set[str | None]:
    status = body.get("verificationStatus")
    if isinstance(status, str):  # as before R4
        return {status}
    return {text(coding, "code") for coding in nodes(node(body, "verificationStatus") or {}, "coding")}


def _recorded(body: Node, index: Index) -> datetime | None:
    """The last moment at which it can have been recorded: as stated, else as asserted, else the encounter's end."""
    written = text(body, "recordedDate")
    if written is None:
        asserted = [item for item in nodes(body, "extension") if text(item, "url") == _ASSERTED]
        written = next((date for item in asserted if (date := text(item, "valueDateTime"))), None)
    if written is not None:
        return moments(written, index.zone)[1]
    return encounter_end(node(body, "encounter"), index)


def _onset(body: Node, key: str, index: Index) -> tuple[datetime, datetime] | None:
    """The first and the last moment at which it can have begun."""
    written = text(body, "onsetDateTime") or text(node(body, "onsetPeriod") or {}, "start")
    if written is not None:
        return moments(written, index.zone)
    age = node(body, "onsetAge") or {}
    value, born = number(age, "value"), index.births.get(key)
    if value is None or born is None:
        return None
    return age_moments(value, text(age, "code"), born)
