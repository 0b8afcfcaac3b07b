"""What do the records hold of a study's features? Who has a value, in which range, in the study's unit or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from client.check.counting import parted, quantiles
from client.check.suppression import WITHHELD, Cell, Count, protect, shown
from client.check.tables import Tables
from client.codes import matches
from client.features import BIRTH, check_units
from shared.config import CodeFeature, Features, NumericFeature
from shared.errors import SiteError

WITH, WITHOUT, INSIDE, OUTSIDE = "with a value", "without", "all in the plausible range", "some outside it"
_YEAR = pd.Timedelta(days=365.25)


@dataclass(frozen=True)
class FeatureFigure:
    """What a site has of one feature of a study.

    Attributes:
        coverage: patients with and without it; of a measurement, those with a value outside the plausible range.
        quantiles: of each patient's newest plausible value, in ``unit``.
        in_unit: the site states the study's unit, and its values can be in it.
    """

    name: str
    coverage: Cell
    unit: str = ""
    plausible: tuple[float, float] | None = None
    quantiles: dict[str, float] = field(default_factory=dict)
    in_unit: bool = True


def feature_figures(tables: Tables, features: Features) -> tuple[FeatureFigure, ...]:
    """One figure a feature, in the order of the study."""
    return tuple(_figures(tables, features))


def _figures(tables: Tables, features: Features) -> Iterator[FeatureFigure]:
    everybody, smallest, events = tables.patients, tables.settings.smallest_cell, tables.events
    if features.age:
        ages = _ages(tables)
        yield FeatureFigure("age", _coverage(tables, set(ages.index)), "a", None, quantiles(ages, smallest))
    for feature in features.numeric:
        rows = events[(events["code"] == feature.code) & events["numeric_value"].notna()].sort_values("time")
        inside = rows["numeric_value"].between(feature.low, feature.high)
        newest = rows[inside].groupby("subject_id")["numeric_value"].last()
        coverage = _coverage(tables, set(rows["subject_id"]), set(rows.loc[~inside, "subject_id"]))
        told, unit = quantiles(newest, smallest), feature.unit
        bounds = (feature.low, feature.high)
        yield FeatureFigure(feature.name, coverage, unit, bounds, told, _in_unit(tables, feature))
    having = {
        feature: everybody & set(events.loc[matches(events["code"], feature.codes), "subject_id"])
        for feature in features.codes
    }
    telling, hidden = _telling(having, len(everybody), smallest), Cell("patients", len(everybody))
    for code, has in having.items():
        yield FeatureFigure(code.name, hidden if code in telling else _coverage(tables, has))


def _telling(having: Mapping[CodeFeature, AbstractSet[int]], patients: int, smallest: int) -> set[CodeFeature]:
    """Features whose counts would give away a small one of another answer to the same question.

    Codes that differ in their last part, such as IST//RCONSC//F and IST//RCONSC//D, answer one question; where no
    patient has two of them, they and the patients without an answer add up to all patients.
    """
    questions: dict[str, list[CodeFeature]] = {}
    for feature in having:
        asked = {code.rpartition("//")[0] for code in feature.codes}
        if len(asked) == 1 and "//" in (question := asked.pop()):  # else it is a whole vocabulary
            questions.setdefault(question, []).append(feature)
    telling: set[CodeFeature] = set()
    for answers in questions.values():
        answered = [len(having[feature]) for feature in answers]
        if len(set().union(*(having[feature] for feature in answers))) < sum(answered):
            continue
        *told, _ = protect([Count("", count) for count in (*answered, patients - sum(answered))], smallest)
        telling |= {feature for feature, count in zip(answers, told, strict=True) if count == WITHHELD}
    return telling


def _coverage(tables: Tables, has: AbstractSet[int], outside: AbstractSet[int] | None = None) -> Cell:
    everybody = tables.patients
    name, (with_value, without) = parted("value", everybody, has, (WITH, WITHOUT))
    if outside is not None:
        ranges = parted("range", has, has - outside, (INSIDE, OUTSIDE))
        with_value = Count(WITH, with_value.value, groups=(ranges,))
    return shown(
        Count("patients", len(everybody), groups=((name, (with_value, without)),)), tables.settings.smallest_cell
    )


def _in_unit(tables: Tables, feature: NumericFeature) -> bool:
    try:
        check_units(tables.dataset, tables.events, Features(age=False, numeric=(feature,)))
    except SiteError:
        return False
    return True


def _ages(tables: Tables) -> pd.Series:
    """Age in whole years at a patient's last scan or event, by subject; only of those whose birth is known."""
    events, images = tables.events, tables.images
    born = events[(events["code"] == BIRTH) & events["time"].notna()].groupby("subject_id")["time"].first()
    seen = pd.concat([events.groupby("subject_id")["time"].max(), images.groupby("subject_id")["acquired_at"].max()])
    last = seen.groupby(level=0).max().reindex(born.index)
    return pd.Series(np.floor((last - born) / _YEAR), index=born.index)


def event_counts(tables: Tables, features: Features) -> Count:
    """Events, by whether the study's features use them."""
    codes = [code for feature in features.codes for code in feature.codes] + [f.code for f in features.numeric]
    used = matches(tables.events["code"], tuple(codes))
    groups = []
    for name, rows in (("used by the features", tables.events[used]), ("not used", tables.events[~used])):
        if len(rows):
            groups.append(Count(name, len(rows), rows["subject_id"].nunique()))
    total = tables.events["subject_id"]
    return Count("events", len(total), total.nunique(), (("use", tuple(groups)),))


def years_of(times: pd.Series, subjects: pd.Series, smallest: int) -> tuple[int, int] | None:
    """First and last year in which enough patients have something; None where there is no such year."""
    years = pd.to_datetime(times).dt.year
    patients = subjects.groupby(years).nunique()
    told = patients[patients >= smallest].index
    return (int(told.min()), int(told.max())) if len(told) else None
