"""When was a time that may be known to the year, month or day only?

Inputs come from strictly before a prediction, so what is known to the day counts from the end of the day: nothing is
seen before it can have been known. Midnight is how many systems write that they know the day alone.
"""

from __future__ import annotations

import calendar
import re
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from client.ingest.fhir.json import malformed

_WRITTEN = re.compile(  # hl7.org/fhir/R4/datatypes.html#dateTime
    r"(?P<year>\d{4})(-(?P<month>\d\d)(-(?P<day>\d\d)(T(?P<time>\d\d:\d\d(:\d\d(\.\d+)?)?)(?P<offset>Z|[+-]\d\d:\d\d)?)?)?)?",
    re.ASCII,
)
_YEAR_DAYS = 365.25
_AGE_DAYS = {"a": _YEAR_DAYS, "mo": _YEAR_DAYS / 12, "wk": 7.0, "d": 1.0}  # UCUM
_OLDEST_DAYS = 150 * _YEAR_DAYS


def moments(written: str, zone: ZoneInfo | None) -> tuple[datetime, datetime]:
    """The first and the last moment of a FHIR date or time, without zone.

    Args:
        zone: into which times with an offset are turned; None leaves them as the clock showed them.

    Raises:
        LeftOutError: it is none.
    """
    found = _WRITTEN.fullmatch(written)
    if found is None:
        raise malformed()
    try:
        year, month = int(found["year"]), int(found["month"] or 0)
        if not month:
            return datetime(year, 1, 1), _end(datetime(year, 12, 31))
        if not found["day"]:
            return datetime(year, month, 1), _end(datetime(year, month, calendar.monthrange(year, month)[1]))
        day = datetime(year, month, int(found["day"]))
        clock = time.fromisoformat((found["time"] or "00:00").replace(":60", ":59"))  # a leap second
        if clock == time():
            return day, _end(day)
        moment = datetime.combine(day, clock)
        aware = datetime.fromisoformat(moment.isoformat() + (found["offset"] or ""))
        if zone is not None and aware.tzinfo is not None:
            moment = aware.astimezone(zone).replace(tzinfo=None)
        if moment.time() == time():
            return moment, _end(moment)
    except (ValueError, OverflowError, calendar.IllegalMonthError):
        raise malformed() from None
    return moment, moment


def _end(day: datetime) -> datetime:
    return datetime.combine(day, time.max)


def birth(written: str) -> datetime:
    """A date of birth: the middle of the year or month where no more is known."""
    first, _ = moments(written, None)
    if len(written) == len("1964"):
        return first.replace(month=7)
    return first.replace(day=15) if len(written) == len("1964-03") else first


def age_moments(age: float, unit: str | None, born: datetime) -> tuple[datetime, datetime] | None:
    """The first and the last moment at which somebody was of an age; None for an age that is none.

    Args:
        unit: UCUM: a, mo, wk or d.
    """
    days = _AGE_DAYS.get(unit or "")
    if days is None or not 0 <= age * days <= _OLDEST_DAYS:
        return None
    try:
        return born + timedelta(days=age * days), born + timedelta(days=(age + 1) * days)
    except OverflowError:  # born in the year 9999
        return None
