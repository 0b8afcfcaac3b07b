"""What do a patient's eyes look like at a visit, and what does that say about the risk?

A trait of an eye is loading * risk + patient + eye + visit noise, in units in which its spread is about 1; only the
renderers know micrometres. Traits are independent given the risk, and both eyes say what their mean says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shared.site_folder import IR, OCT
from simulation.cohorts.synthetic.hospitals import Hospital
from simulation.cohorts.synthetic.patients import Patients
from simulation.cohorts.synthetic.posterior import Evidence, gaussian
from simulation.cohorts.synthetic.streams import Booleans, Floats

EYES = ("R", "L")
MODALITIES = (OCT, IR)


@dataclass(frozen=True)
class Trait:
    """A property of the eye that follows the vascular risk."""

    name: str
    modality: str
    loading: float
    patient_sd: float = 0.8
    eye_sd: float = 0.33
    visit_sd: float = 0.15


# Chosen once, so that scans and record alone say about equally much and both together about 5 points more than scans,
# the gain that the paper reports (arXiv 2505.02677). No result is a reason to change them.
TRAITS = (
    Trait("nerve_fibre_layer", OCT, -0.37),
    Trait("ganglion_cell_layer", OCT, -0.43),
    Trait("choroid", OCT, -0.40),
    Trait("arteriole_to_venule_ratio", IR, -0.52),
    Trait("tortuosity", IR, 0.40),
)


@dataclass(frozen=True)
class Morphology:
    """Traits of v visits and which of them were imaged."""

    traits: Floats  # (v, 2 eyes, traits)
    imaged: Booleans  # (v, 2 eyes, modalities)


def sample_morphology(patients: Patients, hospital: Hospital, rng: np.random.Generator) -> Morphology:
    """Traits at every visit, and the images that are missing: one eye or one modality, for a patient as a whole."""
    count, visits, shape = len(patients.risk), len(patients.visit_patient), (len(EYES), len(TRAITS))
    loading, patient_sd, eye_sd, visit_sd = (
        np.array([getattr(trait, name) for trait in TRAITS]) for name in ("loading", "patient_sd", "eye_sd", "visit_sd")
    )
    shared = loading * patients.risk[:, None] + patient_sd * rng.standard_normal((count, len(TRAITS)))
    eyes = shared[:, None, :] + eye_sd * rng.standard_normal((count, *shape))
    traits = eyes[patients.visit_patient] + visit_sd * rng.standard_normal((visits, *shape))

    lacking = rng.random(count)
    has_oct = lacking >= hospital.oct_missing
    has_infrared = hospital.infrared & ((lacking < hospital.oct_missing) | (lacking < 1 - hospital.without_infrared))
    blind = np.where(rng.random(count) < hospital.one_eye, rng.integers(0, 2, count), -1)
    eye_seen = blind[:, None] != np.arange(len(EYES))
    imaged = eye_seen[:, :, None] & np.stack([has_oct, has_infrared], axis=1)[:, None, :]
    return Morphology(traits, imaged[patients.visit_patient])


def image_evidence(morphology: Morphology) -> Evidence:
    """What the images of each visit show of the risk, if every trait were read off without error: (v,)."""
    total = Evidence(np.zeros(len(morphology.traits)), np.zeros(len(morphology.traits)))
    for index, trait in enumerate(TRAITS):
        seen = morphology.imaged[:, :, MODALITIES.index(trait.modality)]
        eyes = seen.sum(axis=1)
        sums = (morphology.traits[:, :, index] * seen).sum(axis=1)
        mean = np.where(eyes > 0, sums / np.maximum(eyes, 1), np.nan)
        variance = trait.patient_sd**2 + (trait.eye_sd**2 + trait.visit_sd**2) / np.maximum(eyes, 1)
        total += gaussian(mean, trait.loading, variance)
    return total
