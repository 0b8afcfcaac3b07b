"""Which one code stands for a fact that is coded in several ways, and what is a smoking status called?

FHIR and OMOP both state one fact in several vocabularies. It becomes one event, so that nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable

SMOKING = "LOINC//72166-2"
CURRENT, FORMER, NEVER = f"{SMOKING}//current", f"{SMOKING}//former", f"{SMOKING}//never"

# The answers of the value set of US Core, and LOINC's own. 77176002 and LA18979-7 say "current status unknown".
SMOKING_ANSWERS = {
    **dict.fromkeys(("SNOMED//449868002", "SNOMED//428041000124106"), CURRENT),  # every day, some days
    **dict.fromkeys(("SNOMED//428071000124103", "SNOMED//428061000124105"), CURRENT),  # heavy, light
    "SNOMED//65568007": CURRENT,  # cigarettes
    **dict.fromkeys(("LOINC//LA18976-3", "LOINC//LA18977-1", "LOINC//LA18981-3", "LOINC//LA18982-1"), CURRENT),
    **dict.fromkeys(("SNOMED//8517006", "LOINC//LA15920-4"), FORMER),
    **dict.fromkeys(("SNOMED//266919005", "LOINC//LA18978-9"), NEVER),
}

# Codings that FHIR's vital signs require, beside which others may say how it was measured.
_VITAL_SIGNS = frozenset(
    f"LOINC//{code}"
    for code in ("8480-6", "8462-4", "8867-4", "9279-1", "8310-5", "8302-2", "9843-4", "29463-7", "39156-5", "2708-6")
)
_PREFERRED = ("ICD10", "LOINC//", "SNOMED//", "ICD9//")  # ICD10CM// too: client.ingest.vocabulary tells them apart


def preferred(codes: Iterable[str]) -> str | None:
    """Of the codes of one fact the one that is kept: ICD-10, LOINC, SNOMED CT, ICD-9, another; the first of several."""
    return min(codes, key=_rank, default=None)


def _rank(code: str) -> tuple[int, bool]:
    places = (place for place, vocabulary in enumerate(_PREFERRED) if code.startswith(vocabulary))
    return next(places, len(_PREFERRED)), code not in _VITAL_SIGNS
