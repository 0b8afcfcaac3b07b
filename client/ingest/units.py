"""In which unit is a value, and what is it in the unit that the study wants?

The table is ``tables/units.csv``, which a site can read in a minute. pint was weighed and left: it knows UCUM, but not
how hospitals write it ("mm Hg", "bpm", "F"), its degrees need care, and HbA1c is a conversion of one analyte, not of a
unit.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TABLES = Path(__file__).parent / "tables"
# What may stand as a unit of a code that the study does not name: short and without spaces, so never free text.
_UNIT = re.compile(r"[\w%/*.^'\"°()\[\]{}+-]{1,24}")
_ANNOTATION = re.compile(r"\{[^{}]*\}")  # UCUM: says what is counted and changes nothing


@dataclass(frozen=True)
class Linear:
    """value in the wanted unit = factor * value + offset."""

    factor: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Units:
    """The table of units.

    Attributes:
        spellings: UCUM unit by the way it is written, as it is and in lower case without spaces.
        bases: the base unit and the way to it, by code ("" for every code) and unit.
    """

    spellings: Mapping[str, str]
    bases: Mapping[tuple[str, str], tuple[str, Linear]]


@dataclass(frozen=True)
class Measure:
    """The unit and the plausible range in which a measured code is wanted."""

    unit: str
    low: float
    high: float


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a table shipped with this package; lines that begin with # are remarks."""
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(line for line in stream if not line.startswith("#")))


def read_units(file: Path = TABLES / "units.csv") -> Units:
    """The table of units."""
    spellings: dict[str, str] = {}
    bases = {}
    for row in read_rows(file):
        unit = row["unit"]
        bases[row["code"], unit] = row["base"], Linear(float(row["factor"]), float(row["offset"]))
        for spelling in (unit, *filter(None, row["spellings"].split("|"))):
            spellings.setdefault(spelling, unit)
            if len(spelling) > 1:  # a single letter is told by its case: m is a metre, M is not
                spellings.setdefault(_squeezed(spelling), unit)
    return Units(spellings, bases)


def read_measures(file: Path = TABLES / "measures.csv") -> dict[str, Measure]:
    """What is wanted of measured codes beside the study's features."""
    return {row["code"]: Measure(row["unit"], float(row["low"]), float(row["high"])) for row in read_rows(file)}


def normal_unit(units: Units, text: str) -> str | None:
    """The unit as UCUM writes it; as it stands where the table does not know it; None where it cannot be a unit."""
    text = text.strip()
    for attempt in (text, _squeezed(text), _squeezed(_ANNOTATION.sub("", text))):
        if attempt in units.spellings:
            return units.spellings[attempt]
    return text if _UNIT.fullmatch(text) else None


def conversion(units: Units, have: str, want: str, codes: tuple[str, ...] = ()) -> Linear | None:
    """How values come from one unit to another; None where they do not.

    Args:
        have: a unit as ``normal_unit`` gives it.
        want: likewise.
        codes: what is measured, the most specific name first, for conversions that hold for one analyte alone.
    """
    own = next((units.bases[code, have] for code in codes if (code, have) in units.bases), None)
    if own is None and have == want:
        return Linear()
    source, target = own or units.bases.get(("", have)), units.bases.get(("", want))
    if source is None or target is None or source[0] != target[0]:
        return None
    to_base, back = source[1], target[1]
    return Linear(to_base.factor / back.factor, (to_base.offset - back.offset) / back.factor)


def _squeezed(text: str) -> str:
    return "".join(text.split()).lower() if len(text) > 1 else text
