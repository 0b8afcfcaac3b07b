"""When was that, by the site's clock? Times as hospitals write them, as a mapping describes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import reduce

import pandas as pd

from client.ingest.mapping import Time

ISO = "ISO8601"
_ZONED = re.compile(r"\d(?:Z|[+-]\d\d(?::?\d\d)?)$")
_DAYS_PER_YEAR = 365.25
_TO_THE_END = pd.Timedelta(days=1) - pd.Timedelta(microseconds=1)


def times_of(frame: pd.DataFrame, time: Time, zone: str) -> pd.Series:
    """When the rows of a table of text happened: datetime64[us] without zone; NaT where that cannot be read.

    Args:
        zone: the site's, in which a time with a zone of its own is restated.
    """
    columns = [_replaced(frame[name], time.values.get(name, {})) for name in time.columns]
    text = reduce(lambda one, other: one + " " + other, columns)
    return parse(text, time.format, time.replace, zone)


def parse(text: pd.Series, form: str, replace: Mapping[str, str], zone: str) -> pd.Series:
    """Likewise, of one column; each different text is read once."""
    places, distinct = pd.factorize(text.str.strip())
    texts = pd.Series(distinct, dtype="str")
    if replace:
        words = {word.casefold(): value for word, value in replace.items()}
        pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
        found = re.compile(pattern, re.IGNORECASE)
        texts = texts.map(lambda one: found.sub(lambda hit: words.get(hit[0].casefold(), hit[0]), one)).astype("str")
    times = _iso(texts, zone) if form == ISO else _naive(pd.to_datetime(texts, format=form, errors="coerce"), zone)
    return pd.Series(times.to_numpy()[places], index=text.index, dtype="datetime64[us]")


def _iso(texts: pd.Series, zone: str) -> pd.Series:
    zoned = texts.str.contains(_ZONED) & texts.str.contains(":", regex=False)  # 2020-01-05 is no zone of -05
    plain = pd.to_datetime(texts.where(~zoned), format=ISO, errors="coerce")
    other = pd.to_datetime(texts.where(zoned), format=ISO, errors="coerce", utc=True)
    return _naive(plain, zone).fillna(_naive(other, zone))


def _naive(times: pd.Series, zone: str) -> pd.Series:
    if isinstance(times.dtype, pd.DatetimeTZDtype):
        times = times.dt.tz_convert(zone).dt.tz_localize(None)
    return times.astype("datetime64[us]")


def _replaced(column: pd.Series, values: Mapping[str, str]) -> pd.Series:
    return column.replace(dict(values)) if values else column


def at_the_latest(times: pd.Series) -> pd.Series:
    """The last moment of the day where the time of day is not known, which is written as none or as midnight.

    Inputs come from strictly before a prediction: what was recorded later that day must not be among them.
    """
    return times.mask(times == times.dt.floor("D"), times + _TO_THE_END)


def births(times: pd.Series, ages: pd.Series) -> pd.Series:
    """The middle of the year in which somebody was born who has so many completed years at a time."""
    days = pd.to_timedelta(((ages + 0.5) * _DAYS_PER_YEAR).where(ages.between(0, 130)), unit="D")
    return (times - days).dt.floor("D").astype("datetime64[us]")
