"""Is nothing dated before it happened, however little of its time is written?"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from client.ingest.times import ISO, Moments, check_format, parse
from shared.errors import ConfigError

LAST = timedelta(microseconds=1)
DATES = st.datetimes(datetime(1850, 1, 1), datetime(2199, 12, 31))
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Pacific/Auckland"]


def moments(text: str, form: str = ISO, zone: str = "UTC") -> tuple[pd.Timestamp, pd.Timestamp, pd.Timestamp]:
    """First, middle and last."""
    read: Moments = parse(pd.Series([text], dtype="str"), form, {}, zone)
    assert {part.dtype.name for part in (read.first, read.middle, read.last)} == {"datetime64[us]"}
    return read.first[0], read.middle[0], read.last[0]


def period(moment: datetime, known_to: str) -> tuple[datetime, datetime]:
    """The first and the last moment of the year, month or day of a moment."""
    day = datetime.combine(moment, time())
    if known_to == "day":
        return day, day + timedelta(days=1) - LAST
    if known_to == "month":
        first = day.replace(day=1)
        return first, (first + timedelta(days=32)).replace(day=1) - LAST
    first = day.replace(month=1, day=1)
    return first, first.replace(year=first.year + 1) - LAST


FORMS = {
    "day": [
        *("%d.%m.%Y", "%m/%d/%Y", "%Y%m%d", "%d %b %Y", "%B %d, %Y", "%Y %j", "%Y-W%W-%w", "%Y %U %a", "%G-W%V-%u"),
        *("%Y-%m-%d 00:00", "%d.%m.%Y %H:%M:%S"),
    ],
    "month": ["%m/%Y", "%Y-%m", "%Y%m", "%b %Y", "%B-%Y", "%m-%Y %H %M"],
    "year": ["%Y", "anno %Y", "%Y %%", "%Y %H:%M"],
}


@given(DATES, st.sampled_from([(known_to, form) for known_to, forms in FORMS.items() for form in forms]))
@settings(max_examples=300, deadline=None)
def test_a_time_is_not_before_the_true_moment_nor_after_the_stated_period(
    moment: datetime, how: tuple[str, str]
) -> None:
    known_to, form = how
    check_format(form, "format")
    text = datetime.combine(moment, time()).strftime(form)
    first, middle, last = moments(text, form)
    assert (first, last) == period(moment, known_to)
    assert last >= moment
    assert middle == {"year": first.replace(month=7), "month": first.replace(day=15), "day": first}[known_to]


@given(DATES, st.sampled_from(["day", "month", "year"]), st.sampled_from("-/. "), st.sampled_from(ZONES))
@settings(max_examples=200, deadline=None)
def test_so_it_is_in_iso_8601(moment: datetime, known_to: str, sign: str, zone: str) -> None:
    text = moment.strftime({"day": f"%Y{sign}%m{sign}%d", "month": f"%Y{sign}%m", "year": "%Y"}[known_to])
    first, _, last = moments(text, zone=zone)
    assert (first, last) == period(moment, known_to)


@given(DATES, st.integers(-12, 14), st.sampled_from(ZONES), st.sampled_from([ISO, "%Y-%m-%dT%H:%M:%S%z"]))
@settings(max_examples=200, deadline=None)
def test_midnight_in_another_zone_is_a_day_there(moment: datetime, hours: int, zone: str, form: str) -> None:
    midnight = datetime.combine(moment, time()).isoformat() + f"{hours:+03d}:00"
    first, _, last = moments(midnight, form, zone)
    assert first == pd.Timestamp(midnight).tz_convert(zone).tz_localize(None)
    assert last == first + timedelta(days=1) - LAST


@given(st.permutations(list("aAbBdfGHIjmMpSuUVwWyYzZ")), st.integers(1, 7), DATES)
@settings(max_examples=400, deadline=None)
def test_a_format_is_refused_or_reads_what_it_writes(directives: list[str], count: int, moment: datetime) -> None:
    form = " ".join(f"%{directive}" for directive in directives[:count])
    assume(1970 <= moment.year < 2068)  # %y
    try:
        check_format(form, "format")
    except ConfigError:
        return
    text = pd.Timestamp(moment, tz="UTC").strftime(form)
    first, _, last = moments(text, form)
    year_first, year_last = period(moment, "year")
    assert year_first <= first <= last <= year_last
    assert last.date() >= moment.date()


@pytest.mark.parametrize("word", ["now", "today", "NOW", "Today", "NaT", "nan", "", "-", "heute"])
@pytest.mark.parametrize("form", [ISO, "%Y", "%d.%m.%Y", "%Y-%m-%d", "%d %b %Y"])
def test_a_word_is_no_time(word: str, form: str) -> None:
    assert all(pd.isna(moment) for moment in moments(word, form))


@pytest.mark.parametrize(
    ("text", "form"),
    [("202011", "%Y%m%d"), ("1012020", "%d%m%Y"), ("20200105 930", "%Y%m%d %H%M"), ("20201", "%Y%m")],
)
def test_numbers_without_anything_between_them_have_all_their_digits(text: str, form: str) -> None:
    assert pd.isna(moments(text, form)[0])


def test_zones_may_differ_from_row_to_row() -> None:
    for form, texts in (
        ("%Y-%m-%d %H:%M%z", ["2020-01-05 10:00+01:00", "2020-06-05 10:00+02:00"]),
        (ISO, ["2020-01-05 10:00 +01", "2020-06-05T10:00:00+2"]),
        (ISO, ["2020-01-05T10+01", "2020-06-05T08:00 Z"]),
        ("%Y-%m-%d %H:%M %Z", ["2020-01-05 09:00 UTC", "2020-06-05 08:00 GMT"]),
    ):
        read = parse(pd.Series(texts, dtype="str"), form, {}, "Europe/Berlin")
        assert read.first.astype("str").tolist() == ["2020-01-05 10:00:00", "2020-06-05 10:00:00"]


@pytest.mark.parametrize(
    "form",
    [
        *("%Q", "%d.%m.%Y %", "%U", "%Y-%W", "%G-%V", "%d.%m.%Y%n", "%d.%m.%Y %d", "mixed", "iso8601", ""),
        *("%d.%m.", "%H:%M", "%Y-%d", "%Y %y", "%Y-%m-%d %I:%M", "%Y-%m-%d %H:%M %p", "%Y %z", "%x", "%c", "%Y %V %u"),
    ],
)
def test_a_format_that_tells_no_date_is_refused_with_its_key_and_a_remedy(form: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_format(form, "mapping m.yaml: time.format")
    assert str(caught.value).startswith("mapping m.yaml: time.format must be ")
    assert caught.value.value == form
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_the_last_year_that_can_be_written() -> None:
    assert moments("9999", "%Y")[2] == pd.Timestamp(datetime.combine(date.max, time.max))
    assert pd.isna(moments("9999-12-31T23:59:59-12", zone="America/New_York")[2])
