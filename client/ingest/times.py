"""When was that, by the site's clock? Times as hospitals write them, as a mapping describes them.

Inputs come from strictly before a prediction, so what is known to the day, month or year counts from the end of it:
nothing is seen before it can have been known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shared.errors import ConfigError

if TYPE_CHECKING:
    from client.ingest.mapping import Time

ISO = "ISO8601"
_ZONE = re.compile(r"\s*(?:Z|[+-]\d\d?(?::?\d\d)?)$")
_ZONED = re.compile(r"[T ]\s*\d[\d:.]*" + _ZONE.pattern)  # after a time of day: 2020-01-05 is no zone of -05
_YEAR, _MONTH = re.compile(r"\d{4}"), re.compile(r"\d{4}\D\d\d?")  # what pandas takes for ISO 8601
_DAYS_PER_YEAR = 365.25
_DAY, _LAST = np.timedelta64(1, "D"), np.timedelta64(1, "us")
_WIDTHS = {**dict.fromkeys("dHImMSUVWy", 2), "j": 3, "Y": 4, "G": 4}  # digits, where no more and no fewer will do
_DIRECTIVES = frozenset("aAbBdfGHIjmMpSuUVwWyYzZ%")  # not c, x, X, which depend on the language of the machine


@dataclass(frozen=True)
class Moments:
    """When rows happened, as far as that is written: datetime64[us] without zone, NaT where that cannot be read.

    Attributes:
        first: the time itself; of a day, month or year the beginning.
        middle: 1 July of a year and the 15th of a month, which stand for a date of birth; else the first.
        last: of a day, month or year the last moment; midnight is how many systems write a day. Else the first.
    """

    first: pd.Series
    middle: pd.Series
    last: pd.Series


def times_of(frame: pd.DataFrame, time: Time, zone: str) -> Moments:
    """When the rows of a table of text happened.

    Args:
        zone: the site's, in which a time with a zone of its own is restated.
    """
    columns = [_replaced(frame[name], time.values.get(name, {})) for name in time.columns]
    text = reduce(lambda one, other: one + " " + other, columns)
    return parse(text, time.format, time.replace, zone)


def parse(text: pd.Series, form: str, replace: Mapping[str, str], zone: str) -> Moments:
    """Likewise, of one column; each different text is read once."""
    places, distinct = pd.factorize(text.str.strip())
    texts = pd.Series(distinct, dtype="str")
    if replace:
        words = {word.casefold(): value for word, value in replace.items()}
        pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
        found = re.compile(pattern, re.IGNORECASE)
        texts = texts.map(lambda one: found.sub(lambda hit: words.get(hit[0].casefold(), hit[0]), one)).astype("str")
    texts = texts.where(texts.str.contains(r"\d"))  # pandas takes "now" and "today" for the time of the import
    texts = texts.where(texts.str.fullmatch(_adjoining(form), na=False))
    first, midnight = _clock(texts, form, zone)
    year, month = _known_to(texts, form)
    years, months = first.astype("datetime64[Y]"), first.astype("datetime64[M]")
    july, fifteenth = years.astype("datetime64[M]") + 6, months.astype("datetime64[D]") + 14
    ends = [(years + 1).astype(first.dtype), (months + 1).astype(first.dtype), first + _DAY]
    middle = np.select([year, month], [july.astype(first.dtype), fifteenth.astype(first.dtype)], first)
    last = np.select([year, month, midnight], [end - _LAST for end in ends], first)
    return Moments(*(pd.Series(times[places], index=text.index) for times in (first, middle, last)))


def _clock(texts: pd.Series, form: str, zone: str) -> tuple[NDArray[np.datetime64], NDArray[np.bool_]]:
    """What the site's clock showed, datetime64[us], and whether it, or the one that was read, showed midnight."""
    utc = pd.to_datetime(texts, format=form, errors="coerce", utc=True).astype("datetime64[us, UTC]")
    shown = utc.dt.tz_localize(None)
    if form == ISO:
        zoned = texts.str.contains(_ZONED, na=False)
    else:
        zoned = pd.Series(not {"z", "Z"}.isdisjoint(_directives(form)), index=texts.index)
    midnight = (shown == shown.dt.normalize()) & ~zoned
    if zoned.any():
        utc = utc.where(zoned & utc.dt.year.between(2, 9998))  # zones are known for years that Python can write
        shown = shown.mask(zoned, utc.dt.tz_convert(zone).dt.tz_localize(None))
        bare = texts.where(zoned).str.replace(_ZONE, "", regex=True)
        read = pd.to_datetime(bare, format=form.removesuffix("%z").rstrip(), errors="coerce", utc=True)
        midnight |= (read == read.dt.normalize()) | (shown == shown.dt.normalize())
    return shown.to_numpy(), midnight.to_numpy(dtype=bool)


def _known_to(texts: pd.Series, form: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether a time is known to the year only, and whether to the month only."""
    if form == ISO:
        year, month = (texts.str.fullmatch(known, na=False).to_numpy(dtype=bool) for known in (_YEAR, _MONTH))
        return year, month
    found = _directives(form)
    has_day = not found.isdisjoint("djUWV")
    has_month = not found.isdisjoint("mbB")
    return np.full(len(texts), not (has_day or has_month)), np.full(len(texts), has_month and not has_day)


def _adjoining(form: str) -> re.Pattern[str]:
    """What numbers without anything between them look like: by %Y%m%d, 202011 is November, not the first of January."""
    tokens = ["", *re.findall("%.|[^%]", form, re.DOTALL), ""]
    number = [len(token) == 2 and token[1] in {*_WIDTHS, "f"} for token in tokens]
    pattern = ""
    for place, token in enumerate(tokens):
        if number[place] and (number[place - 1] or number[place + 1]):
            before = "" if number[place - 1] else r"(?<!\d)"
            pattern += before + (r"\d+" if token == "%f" else rf"\d{{{_WIDTHS[token[1]]}}}")
        elif not pattern.endswith(".*"):
            pattern += ".*"
    return re.compile(pattern, re.DOTALL)


def _directives(form: str) -> frozenset[str]:
    return frozenset(re.findall("%(.?)", form, re.DOTALL))


def check_format(form: str, name: str) -> None:
    """Refuse a format by which times cannot be read, or could be read as others than were meant.

    Raises:
        ConfigError: it is neither ``ISO`` nor one of strptime that tells the year, and a day with its month.
    """
    fault = "" if form == ISO else _fault(form)
    if fault:
        rule = f"must be {ISO} or a format of Python's strptime that tells a date"
        raise ConfigError(name, rule, value=form, remedy=f"{fault} An example is %d.%m.%Y %H:%M.")


def _fault(form: str) -> str:
    parts = [part for part in re.findall("%(.?)", form, re.DOTALL) if part != "%"]
    found = frozenset(parts)
    unknown = sorted(found - _DIRECTIVES)
    has_week, has_weekday = bool(found & set("UWV")), bool(found & set("aAuw"))
    if unknown:
        return f"It must not hold {f'%{unknown[0]}'!r}; write %% for a percent sign."
    if len(parts) > len(found):
        return "It must tell each part of a time once."
    if len(found & set("YyG")) != 1:
        return "It must tell the year, once."
    if "d" in found and not found & set("mbB"):
        return "A day must have its month."
    if (has_week and not has_weekday) or ("V" in found) != ("G" in found):
        return "A week must have its day, and %V and %G need each other."
    if ("I" in found) != ("p" in found):
        return "%I and %p need each other."
    if found & set("zZ") and not found & set("djUWV"):
        return "A zone must have a day."
    try:
        pd.to_datetime(pd.Series(["0"]), format=form, errors="coerce", utc=True)
    except (ValueError, re.error) as error:
        return f"It cannot be read: {str(error).splitlines()[0]}."
    return ""


def _replaced(column: pd.Series, values: Mapping[str, str]) -> pd.Series:
    return column.replace(dict(values)) if values else column


def births(times: pd.Series, ages: pd.Series) -> pd.Series:
    """The middle of the year in which somebody was born who has so many completed years at a time."""
    days = pd.to_timedelta(((ages + 0.5) * _DAYS_PER_YEAR).where(ages.between(0, 130)), unit="D")
    return (times - days).dt.floor("D").astype("datetime64[us]")
