"""What does a label task say? When a prediction is made, what counts as a stroke, and which visits get no label."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from shared.errors import ConfigError
from shared.knobs import knob, load, to_json

BEFORE, AFTER, EXCLUDE, KEEP, NEGATIVE = "before", "after", "exclude", "keep", "negative"
CLOCK, ONSET_TIME, RECORDED_TIME, LAST_EVENT, EXTRACTED_AT = "clock", "onset", "recorded", "last_event", "extracted_at"
ANY_SCAN = "any"
FIRST, LAST, EVERY = "first", "last", "every"
STROKE = ("ICD10//I60", "ICD10//I61", "ICD10//I63", "ICD10//I64")
# I62 is no stroke here, and G45 (transient attack) only where a task adds it.
OLD_STROKE = (*STROKE, "ICD10//I69", "ICD10//Z86.73")


@dataclass(frozen=True)
class Anchor:
    """Which visits give a prediction time. Scans, or events, of one patient and day are one visit, at its latest."""

    scans: str = knob("OCT", "days with such a scan are visits", choices=["OCT", "IR", ANY_SCAN])
    codes: tuple[str, ...] = knob((), "where there are no scans: days with such an event are visits instead")
    visits: str = knob(EVERY, "which visits of a patient, chosen before any rule", choices=[FIRST, LAST, EVERY])


@dataclass(frozen=True)
class LabelTask:
    """One task file. N is ``horizon_days``, t the prediction time; codes match as features do: I63 stands for I63.9."""

    name: str = knob(help="the study's task.name; the labels are labels/<name>.parquet")
    window: str = knob(
        help="before: a stroke in [t - N, t] (detection); after: one in (t, t + N] (risk)", choices=[BEFORE, AFTER]
    )
    horizon_days: int = knob(365, "N, the study's task.horizon_days", unit="days", ge=1, le=36500)
    outcome: tuple[str, ...] = knob(STROKE, "codes of a stroke")
    prevalent_codes: tuple[str, ...] = knob(
        OLD_STROKE, "codes that tell of an earlier stroke, whether or not of the kind that is the outcome"
    )
    anchor: Anchor = knob(Anchor())
    stroke_time: str = knob(
        ONSET_TIME,
        "onset: when it began where the record tells, else when it was recorded; recorded: always the latter",
        choices=[ONSET_TIME, RECORDED_TIME],
    )
    same_stroke_days: int = knob(
        28, "a stroke recorded again within this many days of the last time is one stroke", unit="days", ge=0, le=36500
    )
    same_day: str = knob(
        BEFORE,
        "a stroke on the day of t is before it, after it, left out with its visit, or (clock) what the times say",
        choices=[BEFORE, AFTER, EXCLUDE, CLOCK],
    )
    prevalent: str = knob(EXCLUDE, "visits of patients with a stroke before the window", choices=[EXCLUDE, KEEP])
    observed_days: int | None = knob(
        None, "part of the window, next to t, that must be observed for a negative; null: all of it", unit="days", ge=0
    )
    without_end: str = knob(
        LAST_EVENT, "where a record states no end of observation, it ends here", choices=[LAST_EVENT, EXTRACTED_AT]
    )
    death: str = knob(NEGATIVE, "death within (t, t + N] without a stroke", choices=[NEGATIVE, EXCLUDE])
    minimum_age_years: float = knob(
        0.0, "younger patients at t, and those of unknown age, are left out", unit="a", ge=0
    )
    exclude_codes: tuple[str, ...] = knob((), "visits at or after such an event are left out")

    @property
    def needed_days(self) -> int:
        """Days of the window that must be observed for a negative."""
        return self.horizon_days if self.observed_days is None else self.observed_days

    @property
    def digest(self) -> str:
        """Names the rules: sites whose labels shall agree compare it."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()

    def check_consistent(self, path: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", self.name):
            rule = "must be letters, digits, - and _ only, as it names a file"
            raise ConfigError(f"{path}name", rule, value=self.name)
        if not self.outcome:
            raise ConfigError(f"{path}outcome", "must not be empty", remedy="Name the codes of a stroke.")
        lists = {"outcome": self.outcome, "prevalent_codes": self.prevalent_codes, "exclude_codes": self.exclude_codes}
        for name, codes in (*lists.items(), ("anchor.codes", self.anchor.codes)):
            if not all(code.strip() for code in codes):
                raise ConfigError(f"{path}{name}", "must not hold an empty code")
        if self.needed_days > self.horizon_days:
            rule = f"must be <= horizon_days ({self.horizon_days})"
            raise ConfigError(f"{path}observed_days", rule, value=self.observed_days)


def read_task(file: Path) -> LabelTask:
    """The task in a file.

    Raises:
        ConfigError: no such file, not YAML, an unknown setting, or a value that is not allowed.
    """
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError:
        remedy = "Those that come with fedretina are in client/labels/tasks."
        raise ConfigError(str(file), "must be a readable task file", remedy=remedy) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(str(file), "must be valid YAML", value=reason) from None
    return load(LabelTask, {} if data is None else data, f"{file.name}: ")
