"""What does a clinical record say about a patient's risk, and when was it written?

Measurements of a patient scatter around that patient's own mean, so the mean of all values before a visit says all
that they say together. The evidence uses it, and values as drawn (written ones are rounded): an upper bound for
a model that sees the newest value alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulation.cohorts.synthetic.hospitals import Hospital
from simulation.cohorts.synthetic.patients import DAY_S, Patients
from simulation.cohorts.synthetic.posterior import Evidence, gaussian
from simulation.cohorts.synthetic.streams import Floats, Integers


@dataclass(frozen=True)
class Measurement:
    """A measured quantity: N(mean + loading risk, between_sd) for a patient, within_sd around it each time."""

    code: str
    unit: str
    mean: float
    loading: float
    between_sd: float
    within_sd: float
    yearly: float  # times a year, besides those at visits
    at_visit: float  # probability that it is taken at a visit, before the images
    difficulty: float  # multiplies the hospital's ``unmeasured``
    low: float
    high: float
    decimals: int = 0


@dataclass(frozen=True)
class Diagnosis:
    """A chronic disease, present with probability logistic(intercept + slope risk)."""

    code: str
    fourth: tuple[str, ...]  # endings that a hospital may add
    intercept: float
    slope: float = 0.0

    def presence(self, risk: Floats) -> Floats:
        """P(present | risk), same shape as ``risk``."""
        probability: Floats = 1 / (1 + np.exp(-self.intercept - self.slope * risk))
        return probability


MEASUREMENTS = (
    Measurement("LOINC//8480-6", "mm[Hg]", 136, 8.0, 12, 7, 0.8, 0.7, 0.3, 80, 230),
    Measurement("LOINC//8462-4", "mm[Hg]", 79, 2.8, 8, 5, 0.8, 0.7, 0.3, 45, 130),
    Measurement("LOINC//8867-4", "/min", 73, 2.0, 9, 6, 0.8, 0.7, 0.3, 40, 160),
    Measurement("LOINC//39156-5", "kg/m2", 26.8, 1.1, 4.2, 0.6, 0.3, 0.2, 1.0, 15, 60, 1),
    Measurement("LOINC//4548-4", "%", 6.0, 0.32, 0.7, 0.25, 0.4, 0.1, 1.8, 4, 15, 1),
)
DIAGNOSES = (
    Diagnosis("ICD10//I10", ("",), -0.1, 0.8),
    Diagnosis("ICD10//E11", (".9", ".4", ".2"), -1.7, 0.65),
    Diagnosis("ICD10//I48", (".0", ".2", ".9"), -2.5, 0.9),
    Diagnosis("ICD10//E78", (".0", ".5"), -0.6, 0.5),
    Diagnosis("ICD10//I25", (".1", ".9"), -2.0, 0.7),
    Diagnosis("ICD10//N18", (".3", ".9"), -2.3, 0.6),
    Diagnosis("ICD10//J18", (".9", ".1"), -1.9),
    Diagnosis("ICD10//H25", (".1", ".9"), -0.9),
    Diagnosis("ICD10//M54", (".5", ".2"), -0.6),
)
SEXES = ("SEX//F", "SEX//M")
SMOKING = ("LOINC//72166-2//never", "LOINC//72166-2//former", "LOINC//72166-2//current")
UNITS = {measurement.code: measurement.unit for measurement in MEASUREMENTS}

_AGE_MEAN, _AGE_LOADING, _AGE_SD = 65.0, 5.0, 9.5  # years, at the first visit
_AGE_LOW, _AGE_HIGH = 30.0, 97.0
_MALE = Diagnosis("", (), 0.1, 0.25)
_SMOKING_INTERCEPTS, _SMOKING_SLOPES = np.array([0.0, -0.3, -1.0]), np.array([0.0, 0.25, 0.55])
_SEX_UNKNOWN = 0.01
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Record:
    """Everything written down about n patients; times in seconds, ``NEVER`` for what never was."""

    age_years: Floats  # (n,), at the first visit
    birth_s: Integers  # (n,)
    sex: Integers  # (n,), index into SEXES; -1 unknown
    smoking: Integers  # (n,), index into SMOKING
    smoking_s: Integers  # (n,)
    diagnosis_s: Integers  # (n, diagnoses), when it was coded first
    ending: Floats  # (n, diagnoses), uniform: picks the fourth character
    value_patient: Integers  # (m,)
    value_kind: Integers  # (m,), index into MEASUREMENTS
    value_s: Integers  # (m,)
    value: Floats  # (m,)


def sample_record(patients: Patients, hospital: Hospital, rng: np.random.Generator) -> Record:
    """The records of a hospital's patients, from years before their first visit to the end of their follow-up."""
    count, risk = len(patients.risk), patients.risk
    first_visit_s = patients.visit_time_s[patients.visit_number == 1]
    age = _AGE_MEAN + _AGE_LOADING * risk + rng.normal(0, _AGE_SD, count)
    birth_s = first_visit_s - (age.clip(_AGE_LOW, _AGE_HIGH) * 365.25 * DAY_S).astype(np.int64)
    sex = (rng.random(count) < _MALE.presence(risk)).astype(np.int64)
    smoking = (rng.random(count)[:, None] > np.cumsum(smoking_shares(risk), axis=1)).sum(axis=1)
    asked = rng.random(count) >= hospital.unmeasured
    chronic = np.stack([diagnosis.presence(risk) for diagnosis in DIAGNOSES], axis=1)
    coded = rng.random(chronic.shape) < chronic * hospital.sensitivity
    patient, kind, time_s, value = _sample_values(patients, hospital, rng)
    return Record(
        age_years=age,
        birth_s=birth_s // DAY_S * DAY_S,
        sex=np.where(rng.random(count) < _SEX_UNKNOWN, -1, sex),
        smoking=smoking.clip(0, len(SMOKING) - 1),
        smoking_s=np.where(asked, _moment(patients, np.arange(count), rng.random(count)), NEVER),
        diagnosis_s=np.where(
            # Squared: most diseases are known early in the record.
            coded,
            _moment(patients, np.arange(count)[:, None], rng.random(coded.shape) ** 2),
            NEVER,
        ),
        ending=rng.random(coded.shape),
        value_patient=patient,
        value_kind=kind,
        value_s=time_s,
        value=value,
    )


def smoking_shares(risk: Floats) -> Floats:
    """P(never, former, current | risk): (n, 3)."""
    logits = _SMOKING_INTERCEPTS + _SMOKING_SLOPES * risk[:, None]
    weights: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = weights / weights.sum(axis=1, keepdims=True)
    return shares


def _moment(patients: Patients, patient: Integers, fraction: Floats) -> Integers:
    """The second at ``fraction`` of each patient's record."""
    start, end = patients.record_start_s[patient], patients.record_end_s[patient]
    return start + (fraction * (end - start)).astype(np.int64)


def _sample_values(
    patients: Patients, hospital: Hospital, rng: np.random.Generator
) -> tuple[Integers, Integers, Integers, Floats]:
    count, visits = len(patients.risk), len(patients.visit_patient)
    years = (patients.record_end_s - patients.record_start_s) / (365.25 * DAY_S)
    columns = []
    for kind, quantity in enumerate(MEASUREMENTS):
        ever = rng.random(count) >= hospital.unmeasured * quantity.difficulty
        own_mean = quantity.mean + quantity.loading * patients.risk + rng.normal(0, quantity.between_sd, count)
        sporadic = np.repeat(np.arange(count), rng.poisson(quantity.yearly * years) * ever)
        at_visit = np.flatnonzero((rng.random(visits) < quantity.at_visit) & ever[patients.visit_patient])
        patient = np.concatenate([sporadic, patients.visit_patient[at_visit]])
        before_images_s = rng.integers(15 * 60, 90 * 60, len(at_visit))
        time_s = np.concatenate(
            [
                _moment(patients, sporadic, rng.random(len(sporadic))),
                patients.visit_time_s[at_visit] - before_images_s,
            ]
        )
        value = own_mean[patient] + rng.normal(0, quantity.within_sd, len(patient))
        columns.append((patient, np.full(len(patient), kind), time_s, value))
    patient, kinds, time_s, value = (np.concatenate(column) for column in zip(*columns, strict=True))
    return patient, kinds, time_s, value


def log_likelihood(record: Record, patients: Patients, hospital: Hospital, grid: Floats) -> Floats:
    """Of everything a record says strictly before each visit, at each point of the grid (g,): (v, g).

    Whether and when something was written down depends on the risk in one way only: a disease must be present to be
    coded. So a code that is absent speaks for a lower risk by 1 - P(present) * P(coded before the visit | present).
    """
    patient = patients.visit_patient
    age = gaussian(record.age_years[patient] - _AGE_MEAN, _AGE_LOADING, _AGE_SD**2)
    total = (age + _measured(record, patients)).log_likelihood(grid)
    total += _chosen(np.stack([1 - _MALE.presence(grid), _MALE.presence(grid)]), record.sex[patient])
    known = record.smoking_s[patient] < patients.visit_time_s
    total += _chosen(smoking_shares(grid).T, np.where(known, record.smoking[patient], -1))
    start, end = patients.record_start_s[patient], patients.record_end_s[patient]
    coded_by_now = hospital.sensitivity * np.sqrt((patients.visit_time_s - start) / (end - start))
    for column, diagnosis in enumerate(DIAGNOSES):
        present = diagnosis.presence(grid)
        seen = record.diagnosis_s[patient, column] < patients.visit_time_s
        total += np.where(seen[:, None], np.log(present), np.log1p(-np.outer(coded_by_now, present)))
    return total


def _measured(record: Record, patients: Patients) -> Evidence:
    """Evidence of the mean of each patient's values before each visit."""
    visits, kinds = len(patients.visit_patient), len(MEASUREMENTS)
    per_patient = patients.visits
    first_visit = np.cumsum(per_patient) - per_patient
    repeats = per_patient[record.value_patient]
    row = np.repeat(np.arange(len(repeats)), repeats)
    within = np.arange(len(row)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    visit = first_visit[record.value_patient[row]] + within
    before = record.value_s[row] < patients.visit_time_s[visit]
    row, visit = row[before], visit[before]
    cell = visit * kinds + record.value_kind[row]
    number = np.bincount(cell, minlength=visits * kinds).reshape(visits, kinds)
    sums = np.bincount(cell, record.value[row], minlength=visits * kinds).reshape(visits, kinds)
    mean, loading, between_sd, within_sd = (
        np.array([getattr(quantity, name) for quantity in MEASUREMENTS])
        for name in ("mean", "loading", "between_sd", "within_sd")
    )
    seen = np.maximum(number, 1)
    deviation = np.where(number > 0, sums / seen - mean, np.nan)
    return gaussian(deviation, loading, between_sd**2 + within_sd**2 / seen)


def _chosen(shares: Floats, choice: Integers) -> Floats:
    """Log of the share (categories, g) of each visit's category (v,); 0 where it is unknown (-1): (v, g)."""
    return np.where(choice[:, None] >= 0, np.log(shares)[choice], 0.0)
