"""How likely is a stroke, given what was observed? Exact, by summing over a grid of the latent risk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulation.cohorts.synthetic.hospitals import Hospital
from simulation.cohorts.synthetic.streams import Floats

_POINTS, _REACH_SD = 201, 5.0


@dataclass(frozen=True)
class Evidence:
    """Observations x ~ N(offset + loading risk, variance), summed into the two numbers that matter of them.

    Their log-likelihood is ``linear * risk - precision * risk**2 / 2`` up to a constant; evidence adds up.
    """

    linear: Floats  # (v,), sum of loading (x - offset) / variance
    precision: Floats  # (v,), sum of loading**2 / variance

    def __add__(self, other: Evidence) -> Evidence:
        """All observations of both."""
        return Evidence(self.linear + other.linear, self.precision + other.precision)

    def log_likelihood(self, grid: Floats) -> Floats:
        """At each point of the grid (g,): (v, g)."""
        values: Floats = self.linear[:, None] * grid - 0.5 * self.precision[:, None] * grid**2
        return values


def gaussian(deviation: Floats, loading: Floats | float, variance: Floats | float) -> Evidence:
    """Evidence of values that deviate from their offset by ``deviation`` (v, …); NaN is no observation."""
    seen = ~np.isnan(deviation)
    linear = np.where(seen, loading * np.nan_to_num(deviation) / variance, 0.0)
    precision = np.where(seen, loading * np.ones_like(deviation) * loading / variance, 0.0)
    axes = tuple(range(1, deviation.ndim))
    return Evidence(linear.sum(axis=axes), precision.sum(axis=axes))


def risk_grid(hospital: Hospital) -> Floats:
    """Points (g,) that cover all risks of the hospital."""
    return hospital.risk_mean + hospital.risk_sd * np.linspace(-_REACH_SD, _REACH_SD, _POINTS)


def posterior_mean(log_likelihood: Floats, grid: Floats, hospital: Hospital, values: Floats) -> Floats:
    """Expectation of ``values`` (g,) under the posterior of each visit.

    Args:
        log_likelihood: (v, g), of the visit's observations at each point of the grid.

    Returns:
        (v,)
    """
    log_prior = -0.5 * ((grid - hospital.risk_mean) / hospital.risk_sd) ** 2
    logits = log_likelihood + log_prior
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    expectation: Floats = (weights * values).sum(axis=1) / weights.sum(axis=1)
    return expectation
