"""How does vascular risk become strokes, and how likely is one within a window?

Strokes of a patient are a Poisson process with a constant rate, so P(a stroke within N days | risk)
is 1 - exp(-rate N / 365) before a visit and after it alike.
"""

from __future__ import annotations

import numpy as np

from simulation.cohorts.synthetic.streams import Floats, Integers

STROKE_CODES = ("ICD10//I63.9", "ICD10//I63.4", "ICD10//I63.3", "ICD10//I61.9", "ICD10//I60.9", "ICD10//I64")
_STROKE_SHARES = (0.4, 0.25, 0.15, 0.1, 0.05, 0.05)

_SLOPE, _MIDPOINT = 3.6, 1.05
# At low risk the rate is exp(a + k risk); it levels off, or the riskiest patients would have dozens of strokes.
_HIGHEST_RATE = 4.0


def yearly_rate(risk: Floats) -> Floats:
    """Strokes a year, same shape as ``risk``."""
    rate: Floats = _HIGHEST_RATE / (1 + np.exp(-_SLOPE * (risk - _MIDPOINT)))
    return rate


def event_probability(risk: Floats, days: float) -> Floats:
    """P(at least one stroke within ``days`` | risk), same shape as ``risk``."""
    probability: Floats = -np.expm1(-yearly_rate(risk) * days / 365.0)
    return probability


def sample_strokes(
    risk: Floats, start_s: Integers, end_s: Integers, rng: np.random.Generator
) -> tuple[Integers, Integers, Integers]:
    """Every stroke between ``start_s`` and ``end_s`` (seconds, (n,)) of n patients.

    Returns:
        patient index, time in seconds and index into ``STROKE_CODES``, each (strokes,).
    """
    years = (end_s - start_s) / (365.0 * 86400)
    patient = np.repeat(np.arange(len(risk)), rng.poisson(yearly_rate(risk) * years))
    time_s = rng.integers(start_s[patient] + 1, end_s[patient])
    return patient, time_s, rng.choice(len(STROKE_CODES), size=len(patient), p=_STROKE_SHARES)
