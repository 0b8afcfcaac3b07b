"""What do the resources Patient and Observation of FHIR R4 say?

Each function returns events and what was left out, and raises ``LeftOutError`` for a whole resource.
Elements and value sets: hl7.org/fhir/R4.
"""

from __future__ import annotations

from datetime import datetime

from client.ingest.export import BIRTH, DEATH, QUARANTINED, SKIPPED, LeftOut, LeftOutError
from client.ingest.fhir.codes import SMOKING
from client.ingest.fhir.concepts import code_of, smoking_status
from client.ingest.fhir.files import Resource, own_id
from client.ingest.fhir.index import Index, known_as, patient_of
from client.ingest.fhir.json import Node, flag, node, nodes, number, text
from client.ingest.fhir.times import birth, moments

Row = tuple[str, datetime | None, str, float, str]  # as RECORDS
NAN = float("nan")
_SEXES = {"male": "SEX//M", "female": "SEX//F"}
_PANELS = ("LOINC//85354-9", "LOINC//55284-4")  # of blood pressure
_IN_FORCE = ("final", "amended", "corrected", "preliminary")
_UCUM = "http://unitsofmeasure.org"


def read_patient(resource: Resource, index: Index) -> list[Row | LeftOut]:
    """Birth, sex and death."""
    body, key = resource.body, own_id(resource)
    if key is None:
        raise LeftOutError(QUARANTINED, "no id")
    patient = known_as(key, index)
    born, gender, died = text(body, "birthDate"), text(body, "gender") or "", text(body, "deceasedDateTime")
    rows: list[Row | LeftOut] = []
    rows.append((patient, birth(born), BIRTH, NAN, "") if born else LeftOut(SKIPPED, "no date of birth"))
    sex = _SEXES.get(gender)
    rows.append((patient, None, sex, NAN, "") if sex else LeftOut(SKIPPED, "sex is neither male nor female"))
    if died:
        rows.append((patient, moments(died, index.zone)[1], DEATH, NAN, ""))
    elif flag(body, "deceasedBoolean"):
        rows.append(LeftOut(SKIPPED, "dead, without a date"))
    return rows


def read_observation(resource: Resource, index: Index) -> list[Row | LeftOut]:
    """The value, or the components of a blood pressure."""
    body = resource.body
    if text(body, "status") not in _IN_FORCE:
        raise LeftOutError(SKIPPED, "not in force: entered in error, cancelled, or without a result yet")
    _, patient = patient_of(node(body, "subject"), index)
    measured = _measured(body, index)
    components = nodes(body, "component")
    code = code_of(node(body, "code")) if components else None
    rows: list[Row | LeftOut] = []
    if code in _PANELS:
        rows += [_attempt(component, patient, measured) for component in components]
    elif components:
        rows.append(LeftOut(SKIPPED, "components of something else than a blood pressure"))
    if not components or any(name.startswith("value") for name in body):
        rows.append(_attempt(body, patient, measured))
    return rows


def _measured(body: Node, index: Index) -> datetime:
    """When something was measured: the last moment that it can have been."""
    written = text(body, "effectiveDateTime") or text(body, "effectiveInstant")
    written = written or text(node(body, "effectivePeriod") or {}, "end") or text(body, "issued")
    if written is None:
        raise LeftOutError(QUARANTINED, "no time")
    return moments(written, index.zone)[1]


def _attempt(part: Node, patient: str, measured: datetime) -> Row | LeftOut:
    try:
        return (patient, measured, *_value(part))
    except LeftOutError as error:
        return error.left_out


def _value(part: Node) -> tuple[str, float, str]:
    """Code, value and unit of an observation or a component."""
    if part.get("dataAbsentReason") is not None:
        raise LeftOutError(SKIPPED, "the value is absent, for a stated reason")
    code, quantity = code_of(node(part, "code")), node(part, "valueQuantity")
    if quantity is not None:
        if text(quantity, "comparator") is not None:
            raise LeftOutError(SKIPPED, "a value with a comparator, such as <")
        value = number(quantity, "value")
        if value is None:
            raise LeftOutError(SKIPPED, "no value")
        return code, value, _unit(quantity)
    count, answer = number(part, "valueInteger"), node(part, "valueCodeableConcept")
    if count is not None:
        return code, count, ""
    if answer is not None and code == SMOKING:
        return smoking_status(answer), NAN, ""
    if any(name.startswith("value") for name in part):
        raise LeftOutError(SKIPPED, "an answer that is not read: no quantity, and no smoking status")
    raise LeftOutError(SKIPPED, "no value")


def _unit(quantity: Node) -> str:
    """The UCUM code, else the unit as people read it, else whatever code there is."""
    code, unit = text(quantity, "code"), text(quantity, "unit")
    chosen = code if text(quantity, "system") == _UCUM and code else unit or code
    return " ".join((chosen or "").split())
