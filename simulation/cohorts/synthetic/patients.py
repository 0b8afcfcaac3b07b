"""Who are the patients of a hospital, how much at risk are they, and when are they seen?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulation.cohorts.synthetic.hospitals import Hospital
from simulation.cohorts.synthetic.streams import Booleans, Floats, Integers

DAY_S = 86400
EXTRACTED_AT = "2025-06-30"
_EXTRACTED_S = int(np.datetime64(EXTRACTED_AT, "s").astype(np.int64))


@dataclass(frozen=True)
class Patients:
    """n patients with v visits in all; times are seconds since 1970."""

    subject_id: Integers  # (n,), unique over all hospitals
    risk: Floats  # (n,), latent
    labelled: Booleans  # (n,), whether the outcome is known
    record_start_s: Integers  # (n,)
    strokes_start_s: Integers  # (n,), from when on strokes are recorded
    record_end_s: Integers  # (n,)
    visit_patient: Integers  # (v,), index of the patient, ascending
    visit_time_s: Integers  # (v,), the prediction time: when the visit's last image was taken
    visit_number: Integers  # (v,), from 1 within the patient

    @property
    def visits(self) -> Integers:
        """Visits of each patient, (n,)."""
        return np.bincount(self.visit_patient, minlength=len(self.risk))


def sample_patients(
    hospital: Hospital,
    first: int,
    count: int,
    rng: np.random.Generator,
    *,
    mean_visits: float,
    labelled: float,
    horizon_days: int,
) -> Patients:
    """Patients ``first`` to ``first + count`` of the hospital, each watched for a horizon around every visit."""
    visits = 1 + rng.poisson(mean_visits - 1, count)
    patient = np.repeat(np.arange(count), visits)
    end_s = _EXTRACTED_S - rng.integers(DAY_S, 900 * DAY_S, count)
    last_day = (end_s - rng.integers(0, 90 * DAY_S, count)) // DAY_S - horizon_days - 2

    days_since_previous = rng.integers(120, 540, len(patient))
    elapsed = np.cumsum(days_since_previous)
    last_visit = np.cumsum(visits) - 1
    day = last_day[patient] - (elapsed[last_visit][patient] - elapsed)
    time_s = day * DAY_S + rng.integers(8 * 3600, 17 * 3600, len(day))
    first_time_s = time_s[last_visit - visits + 1]
    serial = np.arange(first, first + count)
    return Patients(
        subject_id=hospital.number * 10_000_000 + serial + 1,
        risk=rng.normal(hospital.risk_mean, hospital.risk_sd, count),
        labelled=_every(labelled * hospital.labelling, serial),
        record_start_s=first_time_s - rng.integers(2 * 365 * DAY_S, 8 * 365 * DAY_S, count),
        strokes_start_s=first_time_s - (horizon_days + 1) * DAY_S,
        record_end_s=end_s,
        visit_patient=patient,
        visit_time_s=time_s,
        visit_number=np.arange(len(patient)) - (last_visit - visits)[patient],
    )


def _every(fraction: float, serial: Integers) -> Booleans:
    """A fixed fraction of the serial numbers, evenly spread: exact at any size, and patients come in no order."""
    chosen: Booleans = np.floor((serial + 1) * fraction + 0.5) > np.floor(serial * fraction + 0.5)
    return chosen
