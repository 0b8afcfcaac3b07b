"""Which code is in a CodeableConcept of FHIR?"""

from __future__ import annotations

import re

from client.ingest.export import SKIPPED, LeftOutError
from client.ingest.fhir.codes import SMOKING_ANSWERS, preferred
from client.ingest.fhir.json import Node, node, nodes, text

# Of a diagnosis in German records: A excluded, V suspected, Z state after. client.ingest.vocabulary knows the letters.
_CERTAINTY = "http://fhir.de/StructureDefinition/icd-10-gm-diagnosesicherheit"
_CODE = re.compile(r"[A-Za-z0-9.+*!/-]{1,40}")
_SYSTEMS = {
    "http://loinc.org": "LOINC",
    "urn:oid:2.16.840.1.113883.6.1": "LOINC",
    "http://snomed.info/sct": "SNOMED",
    "urn:oid:2.16.840.1.113883.6.96": "SNOMED",
    "urn:oid:2.16.840.1.113883.6.3": "ICD10",
    "urn:oid:2.16.840.1.113883.6.90": "ICD10CM",
    "http://fhir.de/codesystem/bfarm/icd-10-gm": "ICD10",
    "http://fhir.de/codesystem/dimdi/icd-10-gm": "ICD10",
    "http://terminology.hl7.org/codesystem/icd9cm": "ICD9",
    "urn:oid:2.16.840.1.113883.6.103": "ICD9",
}


def code_of(concept: Node | None) -> str:
    """The one code that stands for a concept.

    Raises:
        LeftOutError: there is none in a vocabulary that is read.
    """
    found = preferred(_codes(concept or {}))
    if found is None:
        raise LeftOutError(SKIPPED, "coded in none of LOINC, SNOMED CT, ICD-10 and ICD-9")
    return found


def smoking_status(answer: Node) -> str:
    """The code of an answer to the question for the smoking status; raises ``LeftOutError`` where it says none."""
    statuses = {SMOKING_ANSWERS[code] for code in _codes(answer) if code in SMOKING_ANSWERS}
    if len(statuses) != 1:
        raise LeftOutError(SKIPPED, "a smoking status that says neither current, former nor never")
    return statuses.pop()


def _codes(concept: Node) -> list[str]:
    codes = []
    for coding in nodes(concept, "coding"):
        system, code = _vocabulary(text(coding, "system") or ""), text(coding, "code")
        if system is not None and code is not None and _CODE.fullmatch(code):
            codes.append(f"{system}//{code}{_certainty(coding)}")
    return codes


def _certainty(coding: Node) -> str:
    stated = (node(item, "valueCoding") or {} for item in nodes(coding, "extension") if text(item, "url") == _CERTAINTY)
    return next((letter for item in stated if (letter := text(item, "code")) in ("A", "V", "Z")), "")


def _vocabulary(system: str) -> str | None:
    url = system.lower().replace("https://", "http://").rstrip("/")
    if url.startswith("http://hl7.org/fhir/sid/icd-"):
        edition = url.removeprefix("http://hl7.org/fhir/sid/icd-").split("/")[0]
        if edition in ("9", "9-cm"):
            return "ICD9"
        is_procedure = edition == "10-pcs" or not edition.startswith("10")
        return None if is_procedure else "ICD10CM" if edition == "10-cm" else "ICD10"
    return _SYSTEMS.get(url)
