"""How much privacy has been spent? The ε of a history of subsampled Gaussian releases, by Opacus's accountants."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shared.knobs import knob

PRV, RDP = "prv", "rdp"  # stated is PRV; RDP is the looser bound beside it. The GDP accountant is no bound at all.
_ORDERS = [1 + x / 10 for x in range(1, 100)] + [*range(11, 64)] + [2.0**x for x in range(6, 11)]
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
    entries = tuple((noise, rate, steps[noise, rate]) for noise, rate in sorted(steps))
    return _epsilon(entries, delta, accountant) if entries else 0.0


@lru_cache(maxsize=256)
def _epsilon(entries: tuple[Entry, ...], delta: float, accountant: str) -> float:
    with warnings.catch_warnings(), np.errstate(divide="ignore"):  # of log(1 - rate), rightly -inf at a rate of 1
        warnings.filterwarnings("ignore", "Optimal order is the")  # of the bound that PRV takes for its domain
        loose = max(_rdp(entries, delta), 0.0)  # below 0 where δ alone is enough
        return loose if accountant == RDP or not 0.0 < loose <= _LARGEST else _prv(entries, delta, loose)


def _rdp(entries: tuple[Entry, ...], delta: float) -> float:
    from opacus.accountants import RDPAccountant  # seconds, which a site without privacy is spared

    rdp = RDPAccountant()
    rdp.history = list(entries)
    return float(rdp.get_epsilon(delta, alphas=_ORDERS))


def _prv(entries: tuple[Entry, ...], delta: float, loose: float) -> float:
    """Twice where RDP is so far off that the error it suggests is no small part of ε."""
    from opacus.accountants import PRVAccountant

    prv, least = PRVAccountant(), _LEAST_ERROR * math.sqrt(sum(steps for _, _, steps in entries))
    prv.history = list(entries)
    error = _error(loose, least)
    found = float(prv.get_epsilon(delta, eps_error=error))
    finer = _error(found, least)
    return found if finer >= error else float(prv.get_epsilon(delta, eps_error=finer))


def _error(size: float, least: float) -> float:
    """A power of two, so that the ε of nearly equal histories differ as the histories do."""
    return max(2.0 ** math.floor(math.log2(size / _PART)), least)
