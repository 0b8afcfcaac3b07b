"""Does anything that enters the model depend on what happened at or after the prediction time, or on a stroke code?

Events are put in the order in which a site folder holds them. Exempt by design: events without a time, which hold for
every time, so that none is injected here but of codes that are no feature.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from client.features import clinical_inputs
from client.labels.labelled import make_labels
from client.labels.task import EVERY, Anchor, LabelTask
from client.store import SiteStore, open_store
from shared.config import STROKE_FAMILY, CodeFeature, Features, NumericFeature
from shared.errors import ConfigError
from shared.site_folder import Dataset
from tests.factories import (
    DIABETES,
    MALE,
    SYSTOLIC,
    VISIT,
    EventRow,
    Tables,
    make_events,
    make_study,
    small_site,
)
from tests.factories import (
    make_labels as label_table,
)

PATIENTS = range(1, 31)
TIMES = {subject: VISIT + pd.Timedelta(days=subject % 3, hours=subject % 2) for subject in PATIENTS}
FEATURES = Features(
    age=True,
    numeric=(
        NumericFeature("systolic", SYSTOLIC, "mm[Hg]", lookback_days=100, low=50, high=300),
        NumericFeature("hba1c", "LOINC//4548-4", "%", lookback_days=1000, low=3, high=20),
    ),
    codes=(CodeFeature("diabetes", (DIABETES,), lookback_days=1000), CodeFeature("male", (MALE,))),
)
STROKE_CODES = (
    *("ICD10//I60.1", "ICD10//I61", "ICD10//I62.9", "ICD10//I63.9", "ICD10//I64", "ICD10//I67.2", "ICD10//I69.3"),
    *("ICD10//G45.9", "ICD10//G46.0", "ICD10//Z86.73", "SNOMED//230690007"),
)
CODES = (
    *(SYSTOLIC, "LOINC//4548-4", DIABETES, f"{DIABETES}.9", MALE, "SEX//F", "MEDS_BIRTH", "MEDS_DEATH", "ICD10//I10"),
    *("OBSERVATION//START", "OBSERVATION//END", f"ONSET//{DIABETES}", f"ONSET//{STROKE_CODES[3]}", *STROKE_CODES),
)
VALUES = (None, 5.0, 49.9, 50.0, 120.0, 300.0, 1e9, float("nan"))
SECOND = pd.Timedelta(seconds=1)
quick = settings(max_examples=4, deadline=None, phases=[Phase.generate])
seeds = st.integers(0, 2**32)


def past_event(random: Random) -> EventRow:
    """Any event before the prediction time of its patient, or without a time."""
    subject, code, value = random.choice(PATIENTS), random.choice(CODES), random.choice(VALUES)
    seconds = random.choice([1e-6, 1, 3600, 86400, 100 * 86400, 101 * 86400, random.uniform(0, 1e8)])
    time = None if random.random() < 0.1 else (TIMES[subject] - seconds * SECOND).round("us")
    return subject, time, code, value


def future_event(random: Random) -> EventRow:
    """Any event at or after the prediction time of its patient."""
    subject, code, value = random.choice(PATIENTS), random.choice(CODES), random.choice(VALUES)
    seconds = random.choice([0, 0, 1e-6, 1, 3600, 86400, random.uniform(0, 1e8)])
    return subject, (TIMES[subject] + seconds * SECOND).round("us"), code, value


def many(random: Random, draw: object, most: int = 150) -> list[EventRow]:
    return [draw(random) for _ in range(random.randint(0, most))]  # type: ignore[operator]


def in_order(rows: list[EventRow]) -> pd.DataFrame:
    """As ``write_site`` puts them."""
    return make_events(rows).sort_values(["subject_id", "time"], na_position="first", kind="stable", ignore_index=True)


def inputs(rows: list[EventRow], features: Features = FEATURES) -> list[np.ndarray]:
    cases = pd.DataFrame({"subject_id": list(TIMES), "prediction_time": list(TIMES.values())})
    cases["prediction_time"] = cases["prediction_time"].astype("datetime64[us]")
    return list(clinical_inputs(in_order(rows), cases, features))


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()


@quick
@given(seeds)
def test_events_at_or_after_the_prediction_time_change_no_input(seed: int) -> None:
    """Injected, removed, and shifted to another time at or after it."""
    random = Random(seed)
    past, future = many(random, past_event), many(random, future_event)
    known = inputs(past)
    assert_same(inputs(past + future), known)
    left = [row for row in future if random.random() < 0.5]
    assert_same(inputs(past + left), known)
    shifted = [
        (who, when + random.uniform(0, 1e7) * SECOND, code, value)  # type: ignore[operator]
        for who, when, code, value in future
    ]
    assert_same(inputs(past + shifted), known)


@quick
@given(seeds)
def test_stroke_codes_change_no_input_whenever_they_are(seed: int) -> None:
    random = Random(seed)
    rows = many(random, past_event)
    strokes = [
        (who, when, random.choice(STROKE_CODES), value)
        for who, when, _, value in many(random, past_event) + many(random, future_event)
    ]
    undated = [(who, None, code, value) for who, _, code, value in strokes[:20]]
    plain = [row for row in rows if row[2] not in STROKE_CODES]
    assert_same(inputs([*rows, *strokes, *undated]), inputs(plain))


def test_the_laws_above_can_fail() -> None:
    """One microsecond earlier, each of these events counts."""
    now, before = TIMES[1], TIMES[1] - pd.Timedelta(microseconds=1)
    for code, value in (
        (SYSTOLIC, 120.0),
        ("LOINC//4548-4", 5.0),
        (DIABETES, None),
        (MALE, None),
        ("MEDS_BIRTH", None),
    ):
        none = inputs([(1, None, "SEX//F", None)])
        assert_same(inputs([(1, None, "SEX//F", None), (1, now, code, value)]), none)
        assert inputs([(1, before, code, value)])[0].tobytes() != none[0].tobytes()


@pytest.mark.parametrize("code", STROKE_CODES)
def test_a_study_cannot_name_a_stroke_code_as_a_feature(code: str) -> None:
    with pytest.raises(ConfigError, match="must not name a stroke code"):
        make_study({"features.codes": [{"name": "hidden", "codes": [code]}]})
    assert code.startswith(STROKE_FAMILY)


# --- through the site folder and its store ------------------------------------------------------------------------


def site_with(rows: list[EventRow]) -> Tables:
    """Twelve patients with OCT, infrared scan and record, of whom every second is positive."""
    tables = small_site()
    extra = [row for row in rows if row[0] <= 12 and row[2] != "MEDS_BIRTH"]
    tables.events = pd.concat([tables.events, make_events(extra)], ignore_index=True)
    tables.dataset = dataclasses.replace(tables.dataset, units=dict.fromkeys(CODES, "mm[Hg]"))
    tables.labels["detection"] = label_table([(who, TIMES[who], who % 2 == 0) for who in range(1, 13)])
    return tables


def what_enters(store: SiteStore) -> dict[str, bytes]:
    cases = store.take_cases(np.arange(len(store.labels)))
    assert cases.clinical is not None
    assert cases.recorded is not None
    tensors = {"clinical": cases.clinical, "recorded": cases.recorded}
    tensors |= {f"{name} images": images for name, images in cases.images.items()}
    tensors |= {f"{name} shown": shown for name, shown in cases.shown.items()}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("seed", range(2))
def test_the_store_gives_the_same_cases_whatever_comes_later(tmp_path: Path, seed: int) -> None:
    random, study = Random(seed), make_study({"images.window_days": 4})
    past = [row for row in many(random, past_event) if row[2] != SYSTOLIC]  # implausible ones are refused at the door
    later = [row for row in many(random, future_event) if row[2] != SYSTOLIC]
    later += [(who, TIMES[who], SYSTOLIC, 200.0) for who in range(1, 13)]
    strokes = [(who, when, random.choice(STROKE_CODES), None) for who, when, _, _ in many(random, past_event)]
    known = what_enters(open_store(site_with(past).write(tmp_path / "known").path, study))
    tables = site_with([*past, *later, *strokes])
    for subject in range(1, 13):
        tables.add_image(subject, "OCT", "L", TIMES[subject] + pd.Timedelta(microseconds=1))
        tables.add_image(subject, "IR", "L", TIMES[subject] + pd.Timedelta(days=subject))
    assert what_enters(open_store(tables.write(tmp_path / "later").path, study)) == known


# --- labels look at their own window only --------------------------------------------------------------------------


def label_map(rows: list[EventRow], rules: LabelTask) -> dict[tuple[int, pd.Timestamp], bool]:
    images = pd.DataFrame({"subject_id": list(TIMES), "acquired_at": list(TIMES.values()), "modality": "OCT"})
    images["acquired_at"] = images["acquired_at"].astype("datetime64[us]")
    made = make_labels(in_order(rows), images, Dataset("north", extracted_at="2024-12-31"), rules).labels
    return dict(zip(zip(made["subject_id"], made["prediction_time"], strict=True), made["boolean_value"], strict=True))


def some_rules(random: Random, window: str) -> LabelTask:
    return LabelTask(
        "any",
        window,
        horizon_days=random.choice([30, 365]),
        anchor=Anchor(visits=EVERY),
        stroke_time=random.choice(["onset", "recorded"]),
        same_day=random.choice(["before", "after", "exclude", "clock"]),
        prevalent=random.choice(["exclude", "keep"]),
        observed_days=random.choice([None, 0, 10]),
        without_end=random.choice(["last_event", "extracted_at"]),
    )


@quick
@given(seeds)
def test_labels_of_detection_do_not_depend_on_what_comes_after_the_day_of_the_scan(seed: int) -> None:
    random = Random(seed)
    past = [(who, None, "SEX//F", None) for who in PATIENTS] + many(random, past_event, 300)
    later = [
        (who, max(when, TIMES[who].normalize() + pd.Timedelta(days=1)), code, value)  # type: ignore[type-var]
        for who, when, code, value in many(random, future_event, 300)
    ]
    rules = some_rules(random, "before")
    assert label_map(past + later, rules) == label_map(past, rules)


@quick
@given(seeds)
def test_inputs_of_risk_labels_never_hold_anything_of_their_window(seed: int) -> None:
    """Whatever makes a label positive, its inputs are those of a record that ends where its window begins."""
    random = Random(seed)
    rows = many(random, past_event) + many(random, future_event)
    rows += [
        (who, TIMES[who] + pd.Timedelta(days=2), "ICD10//I63.9", None) for who in PATIENTS if random.random() < 0.5
    ]
    made = label_map(rows, dataclasses.replace(some_rules(random, "after"), prevalent="keep", observed_days=0))
    assert any(made.values())
    ended = [row for row in rows if row[1] is None or row[1] < TIMES[row[0]]]  # type: ignore[operator]
    assert_same(inputs(rows), inputs(ended))
