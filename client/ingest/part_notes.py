"""What must be known of a part without reading it? Units, dates and coverage, counted while it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from client.codes import names
from client.ingest.coverage import Coverage, FeatureCoverage, count_codes
from client.ingest.events import Rules, Tally, can_read, groups_of
from client.ingest.export import QUARANTINED, SKIPPED, LeftOut, Why
from client.ingest.outcomes import Outcomes
from client.ingest.parts import BMI, HEIGHT, WEIGHT, in_order, with_body_mass_index
from shared.config import ONSET

EARLIER = "left out by an earlier version of fedretina; import again to see why"


@dataclass(frozen=True)
class Notes:
    """Kept with a part.

    Attributes:
        buckets: ranges of which it has a row group.
        stated: ISO date of the extract, where somebody told it.
        latest: ISO date of the latest event, or of the end of a label's horizon.
        units: rows by measured code and unit.
        left_out: of this import, the most frequent reason first.
        found: rows of the export, labels, and what the importer left out; 0 where an earlier version kept no count.
        files: of the export, where the importer tells; ``lost_files`` of them gave nothing, as they are damaged.
    """

    kind: str
    buckets: tuple[int, ...]
    stated: str
    latest: str
    units: Mapping[str, Mapping[str, int]]
    left_out: tuple[LeftOut, ...]
    coverage: Coverage
    found: int = 0
    files: int = 0
    lost_files: int = 0

    def plain(self) -> dict[str, Any]:
        """Ready for JSON; ``read_notes`` is the way back."""
        return {name: value for name, value in asdict(self).items() if name != "buckets"}


def read_notes(data: Mapping[str, Any]) -> Notes:
    """The inverse of ``plain``, with the ranges."""
    coverage = data["coverage"]
    pairs = {
        table: {name: (pair[0], pair[1]) for name, pair in coverage.get(table, {}).items()}
        for table in ("rows", "codes", "patients")
    }
    features = {name: FeatureCoverage(**counts) for name, counts in coverage["features"].items()}
    return Notes(
        **{name: data[name] for name in ("kind", "stated", "latest", "units")},
        buckets=tuple(data["buckets"]),
        left_out=tuple(_left_out(item) for item in data["left_out"]),
        coverage=Coverage(**pairs, unmapped=coverage["unmapped"], features=features),
        **{name: data.get(name, 0) for name in ("found", "files", "lost_files")},
    )


def _left_out(item: Mapping[str, Any]) -> LeftOut:
    if "about" in item:
        return LeftOut(**item)
    # Reasons named columns and tasks then, which are not for others.
    return LeftOut(item["outcome"], EARLIER, item["count"], about=item["reason"])


def as_left_out(counts: Mapping[Why, int]) -> tuple[LeftOut, ...]:
    """What was left out of what was counted, the most frequent first."""
    items = (
        LeftOut(why.outcome, why.reason, count, why.about)
        for why, count in counts.items()
        if why.outcome in (SKIPPED, QUARANTINED) and count
    )
    return tuple(sorted(items, key=lambda item: (-item.count, *item.why)))


class PatientCounts:
    """What is counted by patient; tables of different patients may follow each other, as their counts add up."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._features: Counter[tuple[str, str]] = Counter()
        self._unmapped: Counter[str] = Counter()

    def add(self, frame: pd.DataFrame) -> None:
        """Count the events of some patients, all that these have."""
        codes = [str(code) for code in frame["code"].unique()]
        for feature, its_codes in self._rules.wanted.items():
            hits = frame["code"].isin([code for code in codes if names(its_codes, code)])
            self._features[feature, "patients"] += int(frame.loc[hits, "subject_id"].nunique())
            self._features[feature, "rows"] += int(hits.sum())
        unread = [code for code in codes if not (code.startswith(ONSET) or can_read(code, self._rules))]
        rest = frame.loc[frame["code"].isin(unread), ["code", "subject_id"]].drop_duplicates()
        self._unmapped.update(str(code) for code in rest["code"])

    def coverage(self, coverage: Coverage, bad: Mapping[str, tuple[int, int]]) -> Coverage:
        """A coverage that has all of it; ``bad``: by feature, rows left out by unit and by range."""
        features = {
            feature: FeatureCoverage(
                self._features[feature, "patients"], self._features[feature, "rows"], *bad.get(feature, (0, 0))
            )
            for feature in self._rules.wanted
        }
        return replace(coverage, unmapped=dict(sorted(self._unmapped.items())), features=features)


class Finisher:
    """Makes the rows of each range final and counts them; ranges hold different patients, so that counts add up."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.counts: Counter[Why] = Counter()
        self.events = self.patients = 0
        self._latest = pd.Timestamp.min
        self._units: dict[str, Counter[str]] = {}
        self._by_patient = PatientCounts(rules)

    def finish(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows of ``PART`` in order, with what can be computed from them, without what is there twice."""
        measures = self._rules.measures
        units = [measures[code].unit if code in measures else "" for code in (HEIGHT, WEIGHT, BMI)]
        frame = in_order(frame, self.counts)
        if units == ["cm", "kg", "kg/m2"]:
            more = with_body_mass_index(frame, measures[BMI], self.counts)
            frame = frame if len(more) == len(frame) else in_order(more, self.counts)
        self._count(frame)
        return frame

    def _count(self, frame: pd.DataFrame) -> None:
        self.events += len(frame)
        self.patients += int(frame["subject_id"].nunique())
        latest = frame["time"].max()
        self._latest = self._latest if pd.isna(latest) else max(self._latest, latest)
        for (code, unit), rows in groups_of(frame.loc[frame["unit"] != "", ["code", "unit"]]):
            self._units.setdefault(code, Counter())[unit] += len(rows)
        self._by_patient.add(frame)

    def notes(self, kind: str, tally: Tally, outcomes: Outcomes, stated: str) -> Notes:
        """All that was counted; the ranges are left to the part."""
        ends = [self._latest, *outcomes.ends()]
        latest = max(ends)
        return Notes(
            kind=kind,
            buckets=(),
            stated=stated,
            latest="" if latest == pd.Timestamp.min else latest.date().isoformat(),
            units={code: dict(sorted(units.items())) for code, units in sorted(self._units.items())},
            left_out=as_left_out(tally.left_out + self.counts + outcomes.left_out),
            coverage=self._coverage(tally),
            found=tally.found,
            files=tally.files,
            lost_files=tally.lost_files,
        )

    def _coverage(self, tally: Tally) -> Coverage:
        bad = {}
        for feature, its_codes in self._rules.wanted.items():
            why = Counter[str]()
            for (code, reason), count in tally.bad.items():
                why[reason] += count if names(its_codes, code) else 0
            bad[feature] = why["unit"], why["range"]
        patients = {group: len(its_patients) for group, its_patients in tally.patients.items()}
        return self._by_patient.coverage(count_codes(tally.codes, patients), bad)
