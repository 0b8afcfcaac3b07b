"""What does the study call a code that a hospital uses? Tables of codes, of which the site's own goes first.

The study names diagnoses as ICD-10, measurements as LOINC, and sex as SEX//M and SEX//F. Shipped tables map ICD-9-CM,
SNOMED CT, LOINC synonyms and OMOP's numbers to them (``tables/``, each with its source).
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.ingest.export import BIRTH, DEATH, ExportError
from client.ingest.units import TABLES, read_rows
from shared.config import ONSET

SHIPPED = ("icd9.csv", "snomed.csv", "loinc.csv", "omop.csv")
COLUMNS = ("source_code", "target_code", "comment")
_VOCABULARIES = {
    **dict.fromkeys(("ICD10", "ICD10CM", "ICD10GM", "ICD10WHO", "ICD10AM", "ICD10CA"), "ICD10"),
    **dict.fromkeys(("ICD9", "ICD9CM"), "ICD9"),
    **dict.fromkeys(("SNOMED", "SNOMEDCT", "SNOMEDCTUS", "SCT"), "SNOMED"),
    **dict.fromkeys(("LOINC", "LNC"), "LOINC"),
    **dict.fromkeys(("GENDER",), "GENDER"),
    **dict.fromkeys(("SEX",), "SEX"),
}
_ICD10 = re.compile(r"([A-Z][0-9][0-9A-Z])\.?([0-9A-Z]{0,4})")
# German outpatient records add a letter: G secured, V suspected, A excluded, Z state after. Only G is a diagnosis; a
# code with another letter is not an ICD-10 code that could be taken for one. ICD-10-CM has letters of its own there.
_QUALIFIED = re.compile(r"([A-Z][0-9]{2}\.?[0-9]{0,2})(G|[VAZ])")
UNSECURED = "ICD10-UNSECURED"
_ICD9 = re.compile(r"([0-9]{3}|V[0-9]{2}|E[0-9]{3})\.?([0-9]{0,2})")
# What an event may be called: a vocabulary and a code without spaces, so that free text is never kept.
_CODE = re.compile(r"[\w.+-]{1,40}(//[^\s/\x00-\x1f\x7f][^\s\x00-\x1f\x7f]{0,79})+")


@dataclass(frozen=True)
class Vocabulary:
    """The mapping in force.

    Attributes:
        targets: the study's codes by source code, normalised; none for a code that the site does not want.
        digest: SHA-256 of all of it.
    """

    targets: Mapping[str, tuple[str, ...]]
    digest: str


def read_vocabulary(own: Path | None = None) -> Vocabulary:
    """The shipped tables, and the site's own, whose rows replace theirs.

    Args:
        own: CSV file with the columns ``source_code,target_code,comment``; several rows of one source code map it to
            each of their targets, an empty target leaves the code out.

    Raises:
        ExportError: a file that is not such a table.
    """
    shipped = ((row["source_code"], row["target_code"]) for name in SHIPPED for row in read_rows(TABLES / name))
    targets = _grouped(shipped)
    if own is not None:
        targets |= _grouped(_read_own(own))
    content = json.dumps(sorted(targets.items()), separators=(",", ":"))
    return Vocabulary(targets, hashlib.sha256(content.encode()).hexdigest())


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    targets: dict[str, tuple[str, ...]] = {}
    for source, target in pairs:
        key, found = normal_code(source), normal_code(target)
        known = targets.get(key, ())
        targets[key] = known if not found or found in known else (*known, found)
    return targets


def _read_own(file: Path) -> list[tuple[str, str]]:
    remedy = f"Write a CSV file in UTF-8 with the columns {','.join(COLUMNS)}."
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader((line for line in stream if not line.startswith("#")), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = type(error).__name__
        raise ExportError("the vocabulary table", "must be a readable CSV file", value=reason, remedy=remedy) from None
    header = tuple(name.strip() for name in rows[0]) if rows else ()
    if header[:2] != COLUMNS[:2]:
        raise ExportError("the vocabulary table", "must have those columns", value=header[:5], remedy=remedy)
    pairs = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        source, target = (row[0].strip(), row[1].strip()) if len(row) >= 2 else ("", "")
        if "//" not in source or (target and not is_code(normal_code(target))):
            rule = "must have codes such as LOCAL//17 and ICD10//I10"
            raise ExportError(f"the vocabulary table, row {number}", rule, remedy=remedy)
        pairs.append((source, target))
    return pairs


def is_code(code: str) -> bool:
    """Whether this can name an event."""
    if code.startswith("ICD10//") and not _ICD10.fullmatch(code.removeprefix("ICD10//")):
        return False
    return code in (BIRTH, DEATH) or _CODE.fullmatch(code) is not None


def normal_code(code: str) -> str:
    """A code in the one spelling in which it is looked up and kept: ``icd10cm//i639`` is ``ICD10//I63.9``."""
    if code.startswith(ONSET):
        return ONSET + normal_code(code[len(ONSET) :])
    written, separator, rest = code.strip().partition("//")
    rest = rest.strip()
    name = re.sub(r"[^A-Z0-9]", "", written.upper())
    vocabulary = _VOCABULARIES.get(name)
    if vocabulary is None or not separator:
        return f"{written.strip()}{separator}{rest}"
    if vocabulary == "ICD10":
        return _icd10(rest.upper(), is_cm=name == "ICD10CM")
    if vocabulary == "ICD9":
        match = _ICD9.fullmatch(_bare(rest.upper()))
        rest = ".".join(filter(None, match.groups())) if match else rest
    if vocabulary in ("SEX", "GENDER"):
        rest = rest.upper()
    return f"{vocabulary}//{rest}"


def _icd10(rest: str, *, is_cm: bool) -> str:
    bare = _bare(rest)
    qualified = None if is_cm else _QUALIFIED.fullmatch(bare)
    if qualified is not None:
        bare, letter = qualified.groups()
        if letter != "G":
            return f"{UNSECURED}//{bare}{letter}"
    match = _ICD10.fullmatch(bare)
    return "ICD10//" + (".".join(filter(None, match.groups())) if match else rest)


def _bare(rest: str) -> str:
    """Without spaces and the marks that some put after a code: I63.9-, A39.0+, G01*, I10!"""
    return re.sub(r"[\s†]", "", rest).rstrip("-*+!.#")


def targets_of(vocabulary: Vocabulary, code: str) -> tuple[str, ...] | None:
    """The study's codes for a normalised code; None where no table has it. What ONSET// stands before keeps it."""
    if code.startswith(ONSET):
        inner = targets_of(vocabulary, code[len(ONSET) :])
        return None if inner is None else tuple(ONSET + target for target in inner)
    found = vocabulary.targets.get(code)
    if found is None and code.startswith(("ICD9//", "ICD10//")):  # E11 stands for E11.9 too, as in the study
        while found is None and len(code.partition("//")[2]) > 3:
            code = code[:-1].rstrip(".")
            found = vocabulary.targets.get(code)
    return found
