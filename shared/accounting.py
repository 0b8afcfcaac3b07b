"""How much privacy has been spent? The ε of a history of subsampled Gaussian releases, by Opacus's accountants."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.knobs import knob

PRV, RDP = "prv", "rdp"  # stated is PRV; RDP is the looser bound beside it. The GDP accountant is no bound at all.


@dataclass(frozen=True)
class Release:
    """The Gaussian mechanism on a Poisson sample of the patients, some times over.

    Adjacency is add or remove one patient. ``sampling_rate`` 1 is the Gaussian mechanism on all patients.
    """

    noise_multiplier: float = knob(help="deviation of the noise over the largest influence of one patient", gt=0.0)
    sampling_rate: float = knob(help="chance of each patient to be in a step", gt=0.0, le=1.0)
    steps: int = knob(1, "times that this was released", ge=1)


def epsilon(history: Sequence[Release], delta: float, accountant: str = PRV) -> float:
    """The ε of all releases together at a δ; 0 for no release.

    PRV: arXiv 2106.02848, an upper bound within 1e-3 of the truth; RDP: arXiv 1908.10530.
    """
    if not history:
        return 0.0
    from opacus.accountants import PRVAccountant, RDPAccountant  # seconds, which a site without privacy is spared

    entries = [(release.noise_multiplier, release.sampling_rate, release.steps) for release in history]
    with warnings.catch_warnings(action="ignore"), np.errstate(divide="ignore"):  # of its grid, and of a rate of 1
        rdp = RDPAccountant()
        rdp.history = entries
        bound = float(rdp.get_epsilon(delta))
        if accountant == RDP:
            return bound
        prv = PRVAccountant()
        prv.history = entries
        error = min(max(0.004 * bound, 1e-3), 0.5)  # finer grids cost seconds; what is returned is a bound with any
        return float(prv.get_epsilon(delta, eps_error=error))
