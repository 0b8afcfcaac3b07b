"""How do hospitals differ: whom they see, with which device, and what they write down?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulation.cohorts.synthetic.streams import generator


@dataclass(frozen=True)
class Device:
    """What a camera does to every image alike."""

    name: str
    gain: float = 1.0  # of the brightness
    gamma: float = 1.0  # > 1 darkens the mid-tones
    blur: float = 0.4  # standard deviation, pixels
    noise: float = 0.03  # standard deviation of the additive noise; the full range is 1
    size: float = 1.0  # exported size over the size asked for


@dataclass(frozen=True)
class Hospital:
    """One site. Fractions are of its patients unless said otherwise."""

    name: str
    number: int  # from 1; the leading digits of its subject ids
    weight: float  # share of the cohort's patients, before normalisation
    risk_mean: float
    risk_sd: float
    device: Device
    infrared: bool = True  # whether it takes infrared scans at all
    labelling: float = 1.0  # of the cohort's labelled fraction
    sensitivity: float = 0.9  # probability that a disease present is ever coded
    four_characters: float = 0.5  # of its diagnoses: written as E11.9, not E11
    unmeasured: float = 0.1  # never measured, for a quantity of usual difficulty
    without_infrared: float = 0.06
    without_oct: float = 0.05
    one_eye: float = 0.1

    @property
    def oct_missing(self) -> float:
        """Only who has an infrared scan can lack the OCT: a visit has an image at least."""
        return self.without_oct if self.infrared else 0.0


_FIXED = (
    Hospital("north", 1, 0.35, 0.0, 1.0, Device("Alpha SLO-OCT"), sensitivity=0.92, four_characters=0.1),
    Hospital(
        "east",
        2,
        0.25,
        0.3,
        0.95,
        Device("Beta Vue", gain=1.12, gamma=0.82, blur=0.6, noise=0.045, size=1.5),
        sensitivity=0.75,
        four_characters=0.95,
        unmeasured=0.2,
        one_eye=0.05,
    ),
    Hospital(
        "south",
        3,
        0.2,
        -0.25,
        0.95,
        Device("Gamma OCT II", gain=0.9, gamma=1.15, blur=0.3, noise=0.04),
        infrared=False,
        sensitivity=0.85,
        four_characters=0.5,
        unmeasured=0.05,
        one_eye=0.2,
    ),
    Hospital(
        "west",
        4,
        0.2,
        0.1,
        1.05,
        Device("Alpha SLO-OCT", gain=0.97, gamma=1.05, blur=0.7, noise=0.03),
        labelling=1 / 3,
        sensitivity=0.6,
        four_characters=0.3,
        unmeasured=0.3,
        without_infrared=0.12,
    ),
)


def hospitals(count: int, seed: int) -> Sequence[Hospital]:
    """The first ``count`` hospitals; from the fifth on they are drawn from the seed."""
    return (*_FIXED[:count], *(_drawn(number, seed) for number in range(len(_FIXED) + 1, count + 1)))


def shares(places: Sequence[Hospital], patients: int) -> list[int]:
    """Patients of each hospital: by weight, at least one each, ``patients`` in all."""
    spare = patients - len(places)
    weights = np.array([place.weight for place in places])
    exact = spare * weights / weights.sum()
    counts = np.floor(exact).astype(int)
    largest_rest_first = np.argsort(counts - exact, kind="stable")
    counts[largest_rest_first[: spare - counts.sum()]] += 1
    return [int(count) + 1 for count in counts]


def _drawn(number: int, seed: int) -> Hospital:
    name = f"site-{number:02d}"
    rng = generator(seed, name, "hospital")
    device = Device(
        name=f"{('Alpha SLO-OCT', 'Beta Vue', 'Gamma OCT II', 'Delta')[rng.integers(4)]} {rng.integers(1, 4)}",
        gain=float(rng.uniform(0.88, 1.12)),
        gamma=float(rng.uniform(0.8, 1.2)),
        blur=float(rng.uniform(0.3, 0.8)),
        noise=float(rng.uniform(0.02, 0.05)),
        size=float(rng.choice([1.0, 1.0, 1.0, 1.25, 1.5])),
    )
    return Hospital(
        name,
        number,
        weight=float(rng.uniform(0.05, 0.3)),
        risk_mean=float(rng.normal(0, 0.25)),
        risk_sd=float(rng.uniform(0.9, 1.05)),
        device=device,
        infrared=bool(rng.random() > 0.1),
        sensitivity=float(rng.uniform(0.6, 0.95)),
        four_characters=float(rng.uniform(0, 1)),
        unmeasured=float(rng.uniform(0.02, 0.3)),
        without_infrared=float(rng.uniform(0.02, 0.15)),
        without_oct=float(rng.uniform(0.02, 0.08)),
        one_eye=float(rng.uniform(0.05, 0.2)),
    )
