"""Are labels what docs/labels.md says, for every history and every rule?"""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from client.labelling import describe, label_site
from client.labels.labelled import Account, Tally, make_labels
from client.labels.observation import stated_periods
from client.labels.task import OLD_STROKE, STROKE, Anchor, LabelTask, read_task
from client.labels.verdicts import (
    AFTER_DEATH,
    AGE,
    DIED,
    EARLIER_STROKE,
    EXCLUDED_CODE,
    NEGATIVE,
    NO_RECORD,
    POSITIVE,
    SAME_DAY,
    UNOBSERVED,
    verdicts,
)
from client.labels.visits import find_visits
from client.store import open_store
from shared.config import STROKE_FAMILY
from shared.errors import ConfigError, SiteError
from shared.schema import check_site
from shared.site_folder import Dataset
from tests.factories import VISIT, EventRow, Tables, make_events, make_study, small_site

TASKS = Path(__file__).resolve().parents[2] / "client" / "labels" / "tasks"
DAY, TICK = timedelta(days=1), timedelta(microseconds=1)
T = datetime(2020, 6, 1, 10)
I63, I61, I69, GLAUCOMA = "ICD10//I63.9", "ICD10//I61", "ICD10//I69.3", "ICD10//H40.1"
START, END, BIRTH, DEATH = "OBSERVATION//START", "OBSERVATION//END", "MEDS_BIRTH", "MEDS_DEATH"
EXTRACTED = datetime(2020, 8, 1)
DATASET = Dataset("north", extracted_at="2020-08-01")
Scan = tuple[int, datetime, str]  # patient, time, modality


def task(window: str = "before", **changes: object) -> LabelTask:
    return LabelTask("detection", window, **{"horizon_days": 20, **changes})  # type: ignore[arg-type]


def make_images(scans: list[Scan]) -> pd.DataFrame:
    frame = pd.DataFrame(scans, columns=["subject_id", "acquired_at", "modality"])
    frame["acquired_at"] = pd.to_datetime(frame["acquired_at"]).astype("datetime64[us]")
    return frame.astype({"subject_id": np.int64, "modality": object})


def labels(rows: list[EventRow], scans: list[Scan], rules: LabelTask) -> dict[tuple[int, datetime], bool]:
    return as_dict(make_labels(make_events(rows), make_images(scans), DATASET, rules).labels)


def as_dict(made: pd.DataFrame) -> dict[tuple[int, datetime], bool]:
    times = [time.to_pydatetime() for time in made["prediction_time"]]
    return dict(zip(zip(made["subject_id"], times, strict=True), made["boolean_value"], strict=True))


def verdict(rows: list[EventRow], rules: LabelTask, at: datetime = T) -> str:
    """What becomes of the only visit of patient 1."""
    account = make_labels(make_events(rows), make_images([(1, at, "OCT")]), DATASET, rules).account
    (found,) = [name for name, tally in account.outcomes.items() if tally.visits]
    return found


def days(number: float) -> timedelta:
    return timedelta(days=number)


def at(day: float, code: str, subject: int = 1) -> EventRow:
    return (subject, T + days(day), code, None)


WATCHED = [at(-400, START), at(400, END)]


# --- an independent slow reading of docs/labels.md ---------------------------------------------------------------


def of(code: str, wanted: tuple[str, ...]) -> bool:
    return any(code == w or code.startswith(w + ".") for w in wanted)


def midnight(time: datetime) -> datetime:
    return time.replace(hour=0, minute=0, second=0, microsecond=0)


def slow_occurrences(history: list[tuple[datetime | None, str]], codes: tuple[str, ...], rules: LabelTask) -> list:
    """(time, code) of each thing that occurred; None for a time that nobody knows."""
    onsets = [(w, c[len("ONSET//") :]) for w, c in history if c.startswith("ONSET//") and w is not None]
    onsets = [(w, c) for w, c in onsets if of(c, codes)] if rules.stroke_time == "onset" else []
    found = list(onsets)
    for when, code in history:
        if not of(code, codes):
            continue
        began = [w for w, c in onsets if c == code and (when is None or w <= when)]
        if when is None and began:
            continue
        found.append((max(began) if began else when, code))
    return found


def slow_strokes(times: list[datetime], same_stroke_days: int) -> list[datetime]:
    strokes: list[datetime] = []
    previous: datetime | None = None
    for time in sorted(times):
        if previous is None or time - previous > days(same_stroke_days):
            strokes.append(time)
        previous = time
    return strokes


def slow_period(history: list[tuple[datetime | None, str]], t: datetime, rules: LabelTask) -> tuple:
    """(since, until) of the observation around t, each None where there is none."""
    plain = [w for w, c in history if w is not None and c != BIRTH and not c.startswith("ONSET//")]
    first = midnight(min(plain)) if plain else None
    last = midnight(max(plain)) + DAY if plain else None
    if plain and rules.without_end == "extracted_at":
        last = EXTRACTED + DAY
    starts = {midnight(w) for w, c in history if w is not None and c == START}
    ends = {midnight(w) + DAY for w, c in history if w is not None and c == END}
    edges = sorted((starts | ends) - (starts & ends))  # the next day goes on where the day before ended
    periods: list[tuple[datetime | None, datetime | None]] = []
    opened: datetime | None = None
    for edge in edges:
        if edge in starts:
            opened = opened or edge
        elif opened is not None:
            periods.append((opened, edge))
            opened = None
        elif edge == edges[0]:
            periods.append((None, edge))
    periods += [(opened, None)] if opened else []
    if not periods:
        return first, last
    for since, until in periods:
        if (since is None or since <= t) and (until is None or t < until):
            return since or first, until or last
    return (first, None) if all(since is not None and since > t for since, _ in periods) else (None, None)


def slow_verdict(history: list[tuple[datetime | None, str]], t: datetime, rules: LabelTask) -> str:
    if not history:
        return "no record"
    day, window = midnight(t), days(rules.horizon_days)
    deaths = [w for w, c in history if c == DEATH and w is not None]
    death = min(deaths) if deaths else None
    if death is not None and death < day:
        return "after death"
    births = [w for w, c in history if c == BIRTH and w is not None]
    if rules.minimum_age_years > 0 and (not births or (t - min(births)) / DAY / 365.25 < rules.minimum_age_years):
        return "age"
    if any(of(c, rules.exclude_codes) and (w is None or w <= t) for w, c in history):
        return "excluded code"
    occurred = slow_occurrences(history, rules.outcome, rules)
    strokes = slow_strokes([w for w, _ in occurred if w is not None], rules.same_stroke_days)
    if rules.same_day == "exclude" and any(midnight(s) == day for s in strokes):
        return "stroke on the same day"

    def is_before(stroke: datetime) -> bool:
        if midnight(stroke) == day and rules.same_day in ("before", "after"):
            return rules.same_day == "before"
        return stroke <= t

    old = [w for w, c in slow_occurrences(history, rules.prevalent_codes, rules) if not of(c, rules.outcome)]
    unknown = any(w is None for w, _ in occurred) or None in old
    dated = [w for w in old if w is not None]
    if rules.window == "before":
        positive = any(is_before(s) and s >= t - window for s in strokes)
        earlier = any(w is not None and w < t - window for w in [w for w, _ in occurred] + dated)
        earlier = earlier or (any(midnight(w) <= day for w in dated) and not positive)
    else:
        positive = any(not is_before(s) and s <= t + window for s in strokes)
        earlier = any(w is not None and is_before(w) for w, _ in occurred) or any(midnight(w) <= day for w in dated)
    if rules.prevalent == "exclude" and (earlier or unknown):
        return "earlier stroke"
    if positive:
        return "positive"
    needed = days(rules.horizon_days if rules.observed_days is None else rules.observed_days)
    since, until = slow_period(history, t, rules)
    if rules.window == "before":
        seen = since is not None and since <= t - needed
    else:
        end = t + needed if death is None else min(t + needed, death)
        seen = since is not None and until is not None and since <= t and end < until
    if needed and not seen:
        return "not observed long enough"
    if rules.window == "after" and rules.death == "exclude" and death is not None and death <= t + window:
        return "death in the window"
    return "negative"


def slow_visits(rows: list[EventRow], scans: list[Scan], anchor: Anchor) -> list[tuple[int, datetime]]:
    if anchor.codes:
        points = [(who, when) for who, when, code, _ in rows if of(code, anchor.codes) and when is not None]
    else:
        wanted = {(who, midnight(when)) for who, when, kind in scans if anchor.scans in (kind, "any")}
        points = [(who, when) for who, when, _ in scans if (who, midnight(when)) in wanted]
    latest: dict[tuple[int, datetime], datetime] = {}
    for who, when in points:
        key = (who, midnight(when))  # type: ignore[arg-type]
        latest[key] = max(latest.get(key, datetime.min), when)  # type: ignore[type-var, assignment]
    visits = sorted((who, when) for (who, _), when in latest.items())
    if anchor.visits == "every":
        return visits
    chosen = visits if anchor.visits == "last" else visits[::-1]
    return sorted({who: (who, when) for who, when in chosen}.values())


CODES = (
    *(I63, I63, "ICD10//I63", I61, "ICD10//I62", f"ONSET//{I63}", f"ONSET//{I61}", I69, f"ONSET//{I69}", GLAUCOMA),
    *(START, END, START, END, DEATH, BIRTH, "LOINC//8480-6", "ENCOUNTER//eye"),
)


def some_moment(random: Random) -> datetime:
    day = random.choice([random.randint(-45, 45), random.choice([-21, -20, -19, -1, 0, 1, 19, 20, 21])])
    return midnight(T) + days(day) + timedelta(hours=random.choice([0, 10, 15])) + random.choice([0, 0, 1]) * TICK


def some_patient(random: Random, subject: int) -> tuple[list[EventRow], list[Scan]]:
    """Few days and hours, so that everything meets its boundary."""
    rows: list[EventRow] = [
        (subject, some_moment(random) if random.random() < 0.9 else None, random.choice(CODES), None)
        for _ in range(random.randint(0, 9))
    ]
    scans = [(subject, some_moment(random), random.choice(["OCT", "IR"])) for _ in range(random.randint(0, 3))]
    return rows, scans


rules = st.builds(
    task,
    window=st.sampled_from(["before", "after"]),
    horizon_days=st.sampled_from([1, 20]),
    outcome=st.sampled_from([STROKE, ("ICD10//I63",)]),
    anchor=st.builds(
        Anchor,
        scans=st.sampled_from(["OCT", "IR", "any"]),
        codes=st.sampled_from([(), (), ("ENCOUNTER//eye",)]),
        visits=st.sampled_from(["every", "first", "last"]),
    ),
    stroke_time=st.sampled_from(["onset", "recorded"]),
    same_stroke_days=st.sampled_from([0, 7]),
    same_day=st.sampled_from(["before", "after", "exclude", "clock"]),
    prevalent=st.sampled_from(["exclude", "keep"]),
    observed_days=st.sampled_from([None, 0, 1]),
    without_end=st.sampled_from(["last_event", "extracted_at"]),
    death=st.sampled_from(["negative", "exclude"]),
    minimum_age_years=st.sampled_from([0.0, 0.0, 0.05]),
    exclude_codes=st.sampled_from([(), (), ("ICD10//H40",)]),
)


def found_verdicts(rows: list[EventRow], scans: list[Scan], rules: LabelTask) -> dict[tuple[int, datetime], str]:
    events = make_events(rows)
    visits = find_visits(events, make_images(scans), rules.anchor)
    times = [time.to_pydatetime() for time in visits["prediction_time"]]
    extracted_at = pd.Timestamp(EXTRACTED) if rules.without_end == "extracted_at" else None
    words = verdicts(events, visits, rules, extracted_at)
    return dict(zip(zip(visits["subject_id"], times, strict=True), words.tolist(), strict=True))


@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(st.integers(0, 2**32), rules)
def test_labels_are_a_slow_reading_of_the_docs(seed: int, wanted: LabelTask) -> None:
    """Many random patients at once, as a call costs as much for one; the error names one."""
    random = Random(seed)
    patients = {subject: some_patient(random, subject) for subject in range(1, 401)}
    rows, scans = ([row for one in patients.values() for row in one[part]] for part in (0, 1))
    random.shuffle(rows)
    random.shuffle(scans)
    found = found_verdicts(rows, scans, wanted)
    visits = slow_visits(rows, scans, wanted.anchor)
    assert list(found) == visits
    for who, t in visits:
        history = [(when, code) for _, when, code, _ in patients[who][0]]
        assert (found[who, t], who, t, history) == (slow_verdict(history, t, wanted), who, t, history)
    made = make_labels(make_events(rows), make_images(scans), DATASET, wanted)
    assert {name: tally.visits for name, tally in made.account.outcomes.items() if tally.visits} == Counter(
        found.values()
    )
    assert as_dict(made.labels) == {
        key: word == POSITIVE for key, word in found.items() if word in (POSITIVE, NEGATIVE)
    }
    for name, tally in made.account.outcomes.items():
        assert tally.patients == len({who for (who, _), word in found.items() if word == name})


# --- boundaries ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "window", "expected"),
    [
        (T, "before", POSITIVE),
        (T, "after", EARLIER_STROKE),
        (T + TICK, "before", NEGATIVE),
        (T + TICK, "after", POSITIVE),
        (T - days(20), "before", POSITIVE),
        (T - days(20) - TICK, "before", EARLIER_STROKE),
        (T + days(20), "after", POSITIVE),
        (T + days(20) + TICK, "after", NEGATIVE),
    ],
)
def test_the_outer_ends_belong_to_a_window_and_t_to_the_one_before(when: datetime, window: str, expected: str) -> None:
    assert verdict([*WATCHED, (1, when, I63, None)], task(window, same_day="clock")) == expected


def test_a_stroke_at_t_is_not_after_it_where_earlier_strokes_are_kept() -> None:
    assert verdict([*WATCHED, (1, T, I63, None)], task("after", same_day="clock", prevalent="keep")) == NEGATIVE
    assert verdict([*WATCHED, (1, T + TICK, I63, None)], task("after", same_day="clock", prevalent="keep")) == POSITIVE


@pytest.mark.parametrize("when", [midnight(T), T, T + timedelta(hours=5)])
def test_a_stroke_on_the_day_of_the_scan_is_where_the_task_says(when: datetime) -> None:
    rows = [*WATCHED, (1, when, I63, None)]
    found = {
        (rule, window): verdict(rows, task(window, same_day=rule))
        for rule in ("before", "after", "exclude")
        for window in ("before", "after")
    }
    assert found == {
        ("before", "before"): POSITIVE,
        ("before", "after"): EARLIER_STROKE,
        ("after", "before"): NEGATIVE,
        ("after", "after"): POSITIVE,
        ("exclude", "before"): SAME_DAY,
        ("exclude", "after"): SAME_DAY,
    }


def test_a_stroke_is_at_its_onset_where_the_record_tells_it() -> None:
    rows = [*WATCHED, at(-3, f"ONSET//{I63}"), at(4, I63)]
    assert verdict(rows, task("before")) == POSITIVE
    assert verdict(rows, task("after")) == EARLIER_STROKE
    assert verdict(rows, task("after", stroke_time="recorded")) == POSITIVE
    other = [*WATCHED, at(-3, f"ONSET//{I61}"), at(4, I63)]
    assert verdict(other, task("after", prevalent="keep", same_stroke_days=0)) == POSITIVE


def test_a_stroke_that_is_recorded_again_is_one() -> None:
    copies = [*WATCHED, *(at(day, I63) for day in (-40, -20, 1, 19))]
    assert verdict(copies, task("after", prevalent="keep")) == NEGATIVE
    assert verdict(copies, task("after", prevalent="keep", same_stroke_days=19)) == POSITIVE
    twice = [*WATCHED, at(-18, I63), at(2, I63)]
    assert verdict(twice, task("after", prevalent="keep", same_stroke_days=20)) == NEGATIVE
    assert verdict(twice, task("after", prevalent="keep", same_stroke_days=19)) == POSITIVE


@pytest.mark.parametrize(
    ("code", "day", "window", "expected"),
    [
        (I69, -30, "before", EARLIER_STROKE),
        (I69, -3, "before", EARLIER_STROKE),
        (I69, 0.2, "before", EARLIER_STROKE),
        (I69, 1, "before", NEGATIVE),
        (I69, -300, "after", EARLIER_STROKE),
        (I69, 1, "after", NEGATIVE),
        ("ICD10//Z86.73", -3, "after", EARLIER_STROKE),
        ("ICD10//I62.9", -3, "before", NEGATIVE),
        ("ICD10//G45.9", -3, "before", NEGATIVE),
        ("ICD10//I639", -3, "before", NEGATIVE),
    ],
)
def test_codes_of_an_earlier_stroke_give_no_label(code: str, day: float, window: str, expected: str) -> None:
    assert verdict([*WATCHED, at(day, code)], task(window)) == expected


def test_sequelae_of_a_stroke_in_the_window_do_not_hide_it() -> None:
    assert verdict([*WATCHED, at(-9, I63), at(-3, I69)], task("before")) == POSITIVE


def test_a_haemorrhage_is_a_negative_of_ischaemic_stroke_after_the_scan_and_an_earlier_stroke_before_it() -> None:
    ischaemic = task("after", outcome=("ICD10//I63",))
    assert verdict([*WATCHED, at(5, I61)], ischaemic) == NEGATIVE
    assert verdict([*WATCHED, at(-5, I61)], ischaemic) == EARLIER_STROKE


def test_a_stroke_without_a_time_is_an_earlier_one() -> None:
    assert verdict([*WATCHED, (1, None, I63, None)], task("after")) == EARLIER_STROKE
    assert verdict([*WATCHED, (1, None, I63, None)], task("after", prevalent="keep")) == NEGATIVE


@pytest.mark.parametrize(
    ("rows", "window", "changes", "expected"),
    [
        ([at(-20, START)], "before", {}, NEGATIVE),
        ([at(-19, START)], "before", {}, UNOBSERVED),
        ([at(-19, START)], "before", {"observed_days": 19}, NEGATIVE),
        ([at(-19, START), at(-3, I63)], "before", {}, POSITIVE),
        ([at(-50, START), at(-9, END)], "before", {}, UNOBSERVED),
        ([at(-50, START), at(-9, END), at(-8, START)], "before", {}, NEGATIVE),
        ([at(-50, START), at(-9, END), at(-7, START)], "before", {}, UNOBSERVED),
        ([at(-20, GLAUCOMA)], "before", {}, NEGATIVE),
        ([at(-20, BIRTH), at(-20, f"ONSET//{GLAUCOMA}"), at(-1, GLAUCOMA)], "before", {}, UNOBSERVED),
        ([at(-1, START), at(20, END)], "after", {}, NEGATIVE),
        ([at(-1, START), at(19, END)], "after", {}, UNOBSERVED),
        ([at(-1, START), at(19, END)], "after", {"observed_days": 0}, NEGATIVE),
        ([at(-1, START), at(9, END), at(14, I63)], "after", {}, POSITIVE),
        ([at(-1, START), at(9, END), at(10, START), at(30, END)], "after", {}, NEGATIVE),
        ([at(-1, GLAUCOMA), at(20, GLAUCOMA)], "after", {}, NEGATIVE),
        ([at(-1, GLAUCOMA), at(19, GLAUCOMA)], "after", {}, UNOBSERVED),
        ([at(-1, GLAUCOMA)], "after", {"without_end": "extracted_at"}, NEGATIVE),
        ([at(-1, GLAUCOMA), at(5, END)], "after", {"without_end": "extracted_at"}, UNOBSERVED),
        ([at(-1, START), at(9, DEATH), at(9, END)], "after", {}, NEGATIVE),
        ([at(-1, START), at(9, DEATH), at(9, END)], "after", {"death": "exclude"}, DIED),
        ([at(-1, START), at(9, DEATH), at(5, END)], "after", {}, UNOBSERVED),
        ([at(-1, START), at(9, DEATH), at(8, I63), at(9, END)], "after", {"death": "exclude"}, POSITIVE),
        ([at(-1, START), at(-1, DEATH), at(9, END)], "after", {}, AFTER_DEATH),
        ([*WATCHED, (1, midnight(T), DEATH, None)], "after", {}, NEGATIVE),
        ([*WATCHED, (1, None, DEATH, None)], "after", {"death": "exclude"}, NEGATIVE),
        ([*WATCHED, at(-70 * 365.25, BIRTH)], "after", {"minimum_age_years": 70}, NEGATIVE),
        ([*WATCHED, at(-70 * 365.25 + 1, BIRTH)], "after", {"minimum_age_years": 70}, AGE),
        (WATCHED, "after", {"minimum_age_years": 1}, AGE),
        ([*WATCHED, at(0, GLAUCOMA)], "after", {"exclude_codes": ("ICD10//H40",)}, EXCLUDED_CODE),
        ([*WATCHED, at(1, GLAUCOMA)], "after", {"exclude_codes": ("ICD10//H40",)}, NEGATIVE),
        ([at(-1, GLAUCOMA, subject=2)], "after", {"observed_days": 0}, NO_RECORD),
    ],
)
def test_observation_death_and_criteria(rows: list[EventRow], window: str, changes: dict, expected: str) -> None:
    assert verdict(rows, task(window, **changes)) == expected


def test_a_window_that_ends_at_the_midnight_after_the_last_day_is_not_observed_whole() -> None:
    rows = [(1, midnight(T) - DAY, START, None), (1, midnight(T) + days(19), END, None)]
    assert verdict(rows, task("after"), at=midnight(T)) == UNOBSERVED
    assert verdict(rows, task("after"), at=midnight(T) - TICK) == NEGATIVE


def test_a_visit_is_a_day_and_ends_with_its_last_scan_of_either_kind() -> None:
    scans = [(1, T, "OCT"), (1, T + timedelta(seconds=40), "IR"), (1, T + DAY, "IR"), (1, T + 2 * DAY, "OCT")]
    found = labels(WATCHED, scans, task())
    assert list(found) == [(1, T + timedelta(seconds=40)), (1, T + 2 * DAY)]
    assert list(labels(WATCHED, scans, task(anchor=Anchor(visits="first")))) == list(found)[:1]
    assert list(labels(WATCHED, scans, task(anchor=Anchor(visits="last")))) == list(found)[1:]
    assert [t for _, t in labels(WATCHED, scans, task(anchor=Anchor(scans="IR")))] == [
        T + timedelta(seconds=40),
        T + DAY,
    ]


def test_a_site_without_scans_is_labelled_at_its_visits() -> None:
    rows = [*WATCHED, at(0, "ENCOUNTER//eye.1"), at(0.1, "ENCOUNTER//eye"), at(3, "ENCOUNTER//heart")]
    assert list(labels(rows, [], task(anchor=Anchor(codes=("ENCOUNTER//eye",))))) == [(1, T + days(0.1))]


# --- laws ---------------------------------------------------------------------------------------------------------


def some_site(seed: int, patients: int = 200) -> tuple[list[EventRow], list[Scan]]:
    random = Random(seed)
    both = [some_patient(random, subject) for subject in range(1, patients + 1)]
    return [row for rows, _ in both for row in rows], [scan for _, scans in both for scan in scans]


seeds = st.integers(0, 2**32)
few = settings(max_examples=3, deadline=None, phases=[Phase.generate])


@few
@given(seeds, rules, st.sampled_from([1, 2, 20, 21, 400]))
def test_a_longer_horizon_turns_no_positive_negative(seed: int, wanted: LabelTask, more: int) -> None:
    rows, scans = some_site(seed)
    wanted = dataclasses.replace(wanted, anchor=Anchor(scans="any"))
    longer = dataclasses.replace(wanted, horizon_days=wanted.horizon_days + more)
    short, long = labels(rows, scans, wanted), labels(rows, scans, longer)
    assert all(long[key] for key, positive in short.items() if positive)


@few
@given(seeds, rules, st.integers(-3000, 3000), seeds)
def test_neither_the_calendar_nor_the_order_of_rows_matters(
    seed: int, wanted: LabelTask, shift: int, order: int
) -> None:
    """By whole days, as the day of a scan is one of midnights; the extract is shifted as well."""
    rows, scans = some_site(seed)
    wanted = dataclasses.replace(wanted, anchor=Anchor(scans="any"))
    moved = [(who, None if when is None else when + days(shift), code, value) for who, when, code, value in rows]  # type: ignore[operator]
    moved_scans = [(who, when + days(shift), kind) for who, when, kind in scans]
    Random(order).shuffle(moved)
    Random(order).shuffle(moved_scans)
    dataset = dataclasses.replace(DATASET, extracted_at=(EXTRACTED + days(shift)).date().isoformat())
    made = make_labels(make_events(moved), make_images(moved_scans), dataset, wanted).labels
    assert {(who, t - days(shift)): label for (who, t), label in as_dict(made).items()} == labels(rows, scans, wanted)


@few
@given(seeds, rules)
def test_other_patients_do_not_matter(seed: int, wanted: LabelTask) -> None:
    rows, scans = some_site(seed)
    wanted = dataclasses.replace(wanted, anchor=Anchor(scans="any"))
    own = [row for row in rows if row[0] <= 100] or [at(0, GLAUCOMA)]
    alone = labels(own, [scan for scan in scans if scan[0] <= 100], wanted)
    assert {key: label for key, label in labels(rows, scans, wanted).items() if key[0] <= 100} == alone


@few
@given(seeds, rules)
def test_a_visit_is_never_positive_for_detection_and_risk(seed: int, wanted: LabelTask) -> None:
    """With the default rules for earlier strokes; else a patient may have one on either side."""
    rows, scans = some_site(seed)
    wanted = dataclasses.replace(wanted, anchor=Anchor(scans="any"), prevalent="exclude")
    either = [labels(rows, scans, dataclasses.replace(wanted, window=window)) for window in ("before", "after")]
    assert not any(either[0][key] and either[1][key] for key in either[0].keys() & either[1].keys())


def test_stated_periods_are_disjoint_and_in_order() -> None:
    rows, _ = some_site(7, patients=300)
    periods = stated_periods(make_events(rows)).sort_values(["subject_id", "since"], ignore_index=True)
    same = periods["subject_id"] == periods["subject_id"].shift()
    assert (periods["since"] < periods["until"]).all()
    assert (periods["since"] > periods["until"].shift())[same].all()
    assert same.any()


# --- the command ---------------------------------------------------------------------------------------------------


def watched_site(positive: int = 6, patients: int = 12) -> Tables:
    """Patients who were watched for two years around the visit, and some of them had a stroke half a year after it."""
    tables = small_site(patients=patients)
    rows: list[EventRow] = []
    for subject in range(1, patients + 1):
        rows += [(subject, VISIT - pd.Timedelta(days=400), START, None)]
        rows += [(subject, VISIT + pd.Timedelta(days=400), END, None)]
        rows += [(subject, VISIT + pd.Timedelta(days=180), I63, None)] if subject <= positive else []
    tables.events = pd.concat([tables.events, make_events(rows)], ignore_index=True)
    return tables


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("name", ["stroke_detection", "stroke_risk", "ischaemic_stroke_risk"])
def test_the_tasks_that_come_along_label_a_site_that_stays_valid(tmp_path: Path, name: str) -> None:
    folder = watched_site().write(tmp_path / "north")
    account = label_site(folder.path, TASKS / f"{name}.yaml")
    check_site(folder)
    made, window = folder.labels(account.task.name), account.task.window
    assert made["boolean_value"].tolist() == [window == "after"] * 6 + [False] * 6
    assert (made["prediction_time"] == VISIT).all()
    assert folder.dataset().horizons_days[account.task.name] == 365


def test_the_store_takes_what_was_labelled_and_refuses_another_horizon(tmp_path: Path) -> None:
    folder = watched_site().write(tmp_path / "north")
    label_site(folder.path, TASKS / "stroke_risk.yaml")
    store = open_store(folder.path, make_study({"task.name": "risk"}))
    assert store.labels.tolist() == [1.0] * 6 + [0.0] * 6
    assert all((rows >= 0).any(axis=1).all() for rows in store.case_scans.values())  # OCT and infrared of the visit
    with pytest.raises(SiteError, match="horizon of risk must be"):
        open_store(folder.path, make_study({"task.name": "risk", "task.horizon_days": 30}))


def test_labelling_twice_changes_no_byte_and_touches_nothing_else(tmp_path: Path) -> None:
    folder = watched_site().write(tmp_path / "north")
    before = content(folder.path)
    label_site(folder.path, TASKS / "stroke_risk.yaml")
    once = content(folder.path)
    label_site(folder.path, TASKS / "stroke_risk.yaml")
    assert content(folder.path) == once
    changed = {name for name in once if once[name] != before.get(name)}
    assert changed == {"labels/risk.parquet", "dataset.yaml"}


@pytest.mark.parametrize("stop", ["client.labelling.write_atomic", "client.labelling.write_table", "os.replace"])
def test_a_stop_never_leaves_labels_beside_another_horizon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    folder = watched_site().write(tmp_path / "north")
    label_site(folder.path, write_task(tmp_path, horizon_days=365))
    old = folder.labels("risk")

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    other = write_task(tmp_path, horizon_days=90)
    with monkeypatch.context() as patch:
        patch.setattr(stop, fail)
        with pytest.raises(KeyboardInterrupt):
            label_site(folder.path, other)
    left, horizon = folder.labels("risk"), folder.dataset().horizons_days["risk"]
    assert left.empty or (horizon == 365 and left.equals(old))
    label_site(folder.path, other)
    assert not folder.labels("risk")["boolean_value"].any()
    assert not [file for file in (folder.path / "labels").iterdir() if file.name.startswith(".")]


def write_task(folder: Path, **changes: object) -> Path:
    file = folder / "task.yaml"
    file.write_text(yaml.safe_dump({"name": "risk", "window": "after", **changes}), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: risk\nwindow: after\nhorison: 3", "horison is not a setting. Did you mean"),
        ("name: risk", "window must be given"),
        ("name: risk\nwindow: around", "window must be one of before, after, got 'around'"),
        ("name: risk\nwindow: after\noutcome: []", "outcome must not be empty"),
        ("name: risk\nwindow: after\noutcome: ['']", "outcome must not hold an empty code"),
        ("name: risk\nwindow: after\noutcome: ICD10//I63", "outcome must be a list"),
        ("name: ../risk\nwindow: after", "name must be letters"),
        ("name: risk\nwindow: after\nhorizon_days: 0", "horizon_days must be >= 1 days, got 0"),
        ("name: risk\nwindow: after\nobserved_days: 366", r"observed_days must be <= horizon_days \(365\), got 366"),
        ("name: risk\nwindow: after\nanchor: {scans: CT}", "anchor.scans must be one of OCT, IR, any"),
        ("", "name must be given"),
        ("[1, 2]", "must be a mapping of settings"),
        ("name: [", "must be valid YAML"),
        ("\x00", "must be valid YAML"),
    ],
)
def test_a_wrong_task_file_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_task(file)


def test_a_missing_task_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a readable task file"):
        read_task(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("rows", "scans", "changes", "message"),
    [
        (WATCHED, [], {}, "imaging/index.parquet must hold OCT scans to label. Import scans first"),
        (WATCHED, [(1, T, "IR")], {}, "must hold OCT scans"),
        ([], [(1, T, "OCT")], {}, "events.parquet must hold events to label by"),
        (WATCHED, [(1, T, "OCT")], {"anchor": Anchor(codes=("ENCOUNTER",))}, "must hold dated events that are"),
    ],
)  # fmt: skip
def test_a_site_with_nothing_to_label_is_told_so(
    rows: list[EventRow], scans: list[Scan], changes: dict, message: str
) -> None:
    with pytest.raises(SiteError, match=message):
        labels(rows, scans, task(**changes))


def test_an_extract_without_a_date_cannot_end_observation() -> None:
    wanted = task("after", without_end="extracted_at")
    with pytest.raises(SiteError, match="extracted_at must be given"):
        make_labels(make_events(WATCHED), make_images([(1, T, "OCT")]), Dataset("north"), wanted)


def test_small_counts_are_not_shown() -> None:
    outcomes = {POSITIVE: Tally(9, 4), NEGATIVE: Tally(7, 5), UNOBSERVED: Tally(1, 1), DIED: Tally()}
    shown = list(describe(Account(task(), outcomes)))
    assert shown[1:] == [
        "  positive: fewer than 5 patients",
        "  negative: 7 visits of 5 patients",
        "  no label: not observed long enough: fewer than 5 patients",
    ]


def test_a_site_with_one_class_is_warned() -> None:
    shown = list(describe(Account(task(), {POSITIVE: Tally(), NEGATIVE: Tally(9, 9)})))
    assert "warning: no positive" in shown[-1]


def test_equal_rules_have_one_name_and_others_another() -> None:
    assert task().digest == task().digest != task(observed_days=0).digest


def test_every_default_code_of_a_stroke_is_one_that_never_enters_as_input() -> None:
    assert all(code.startswith(STROKE_FAMILY) for code in (*STROKE, *OLD_STROKE))
