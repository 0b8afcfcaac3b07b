"""How much privacy has been spent? The ε of a history of subsampled Gaussian releases, by Opacus's accountants."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shared.knobs import knob

PRV, RDP = "prv", "rdp"  # stated is PRV; RDP is the looser bound beside it. The GDP accountant is no bound at all.
# Whole numbers but for the smallest, which matter where little is private: others take thirty times as long.
_ORDERS = [1.1, 1.25, 1.5, 1.75, *range(2, 64), *(2**x for x in range(6, 11))]
_PART = 200  # of ε: what PRV may lie above the truth
_LEAST_ERROR = 5e-6  # times the root of the steps: some 4 million points of the privacy loss, a second's work
_LARGEST = 500.0  # the exponential of a privacy loss must stay a number

Entry = tuple[float, float, int]  # as Opacus has them: noise multiplier, sampling rate, steps


@dataclass(frozen=True)
class Release:
    """The Gaussian mechanism on a Poisson sample of the patients, some times over.

    Adjacency is add or remove one patient. ``sampling_rate`` 1 is the Gaussian mechanism on all patients.
    """

    noise_multiplier: float = knob(help="deviation of the noise over the largest influence of one patient", gt=0.0)
    sampling_rate: float = knob(help="chance of each patient to be in a step", gt=0.0, le=1.0)
    steps: int = knob(1, "times that this was released", ge=1)


def epsilon(history: Sequence[Release], delta: float, accountant: str = PRV) -> float:
    """The ε of all releases together at a δ, in whatever order they came; 0 for no release.

    PRV (arXiv 2106.02848): an upper bound, above the truth by at most 1 %, or 1e-5 times the root of the steps where
    that is more; beyond an ε of 500, which protects nobody, RDP's. RDP: arXiv 1908.10530.
    """
    steps: Counter[tuple[float, float]] = Counter()
    for release in history:
        steps[release.noise_multiplier, release.sampling_rate] += release.steps
    every = [(noise, rate, steps[noise, rate]) for noise, rate in sorted(steps)]
    entries = tuple(entry for entry in every if entry[1] < 1.0)
    # Gaussian mechanisms on all patients are together exactly one, with the sum of their inverse squared noises.
    if together := math.fsum(count / noise**2 for noise, rate, count in every if rate == 1.0):
        entries = ((1.0 / math.sqrt(together), 1.0, 1), *entries)
    return _epsilon(entries, delta, accountant) if entries else 0.0


@lru_cache(maxsize=256)
def _epsilon(entries: tuple[Entry, ...], delta: float, accountant: str) -> float:
    loose = max(_rdp(entries, delta), 0.0)  # below 0 where δ alone is enough
    return loose if accountant == RDP or not 0.0 < loose <= _LARGEST else _prv(entries, delta, loose)


def _rdp(entries: Sequence[Entry], delta: float) -> float:
    from opacus.accountants.analysis.rdp import get_privacy_spent  # seconds, which a site without privacy is spared

    total = sum(steps * _divergences(noise, rate) for noise, rate, steps in entries)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the")  # of the bound that PRV takes for its domain
        return float(get_privacy_spent(orders=_ORDERS, rdp=total, delta=delta)[0])


@lru_cache(maxsize=1024)
def _divergences(noise: float, rate: float) -> npt.NDArray[np.float64]:
    """Rényi divergence of one release at each order; once for each kind of release, as a plan asks many times."""
    from opacus.accountants.analysis.rdp import compute_rdp

    return np.asarray(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=_ORDERS))


def _prv(entries: tuple[Entry, ...], delta: float, loose: float) -> float:
    """Twice where RDP is so far off that the error it suggests is no small part of ε."""
    least = _LEAST_ERROR * math.sqrt(sum(steps for _, _, steps in entries))
    error = _error(loose, least)
    found = _composed(entries, delta, error)
    finer = _error(found, least)
    return found if finer >= error else _composed(entries, delta, finer)


def _composed(entries: tuple[Entry, ...], delta: float, error: float) -> float:
    """The upper bound of Opacus's ``PRVAccountant``, whose domain of privacy losses needs RDP, here a faster one."""
    from opacus.accountants.analysis import prv  # seconds, which a site without privacy is spared

    unsure, count = delta / 1000, sum(steps for _, _, steps in entries)
    singly = [_rdp([(noise, rate, 1)], unsure / (8 * count)) for noise, rate, _ in entries]
    limit = max(_rdp(entries, unsure / 4), *singly, error) + 3.0  # remark 5.6 of the paper
    domain = prv.Domain.create_aligned(-limit, limit, error / math.sqrt(count * math.log(12 / unsure) / 2))
    with np.errstate(divide="ignore"):  # of log(1 - rate), rightly -inf at a rate of 1
        losses = [prv.PoissonSubsampledGaussianPRV(rate, noise) for noise, rate, _ in entries]
        cut = [prv.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max) for loss in losses]
        parts = [prv.discretize(loss, domain) for loss in cut]
        whole = prv.compose_heterogeneous(parts, [steps for _, _, steps in entries])
        return float(whole.compute_epsilon(delta, unsure, error)[2])


def _error(size: float, least: float) -> float:
    """A power of two, so that the ε of nearly equal histories differ as the histories do."""
    return max(2.0 ** math.floor(math.log2(size / _PART)), least)
