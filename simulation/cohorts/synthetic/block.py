"""What does one block of a hospital's patients add to its tables? Everything but the pixels.

A block is the unit of work and of randomness: whoever makes it, in whichever order, makes the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulation.cohorts.synthetic.hospitals import Hospital
from simulation.cohorts.synthetic.morphology import Morphology, image_evidence, sample_morphology
from simulation.cohorts.synthetic.patients import Patients, sample_patients
from simulation.cohorts.synthetic.posterior import posterior_mean, risk_grid
from simulation.cohorts.synthetic.record import Record, log_likelihood, sample_record
from simulation.cohorts.synthetic.streams import Floats, Integers, generator
from simulation.cohorts.synthetic.strokes import event_probability, sample_strokes


@dataclass(frozen=True)
class Plan:
    """What all blocks of a cohort have in common."""

    seed: int
    mean_visits: float
    labelled: float
    horizon_days: int
    image_height: int
    image_width: int


@dataclass(frozen=True)
class Block:
    """One block's patients and all that is known of them."""

    hospital: Hospital
    patients: Patients
    record: Record
    morphology: Morphology
    stroke_patient: Integers  # (strokes,), index of the patient
    stroke_s: Integers  # (strokes,), seconds since 1970
    stroke_kind: Integers  # (strokes,), index into STROKE_CODES


def sample_block(plan: Plan, hospital: Hospital, first: int, count: int) -> Block:
    """Patients ``first`` to ``first + count`` of a hospital."""
    rng = generator(plan.seed, hospital.name, first, "patients")
    patients = sample_patients(
        hospital,
        first,
        count,
        rng,
        mean_visits=plan.mean_visits,
        labelled=plan.labelled,
        horizon_days=plan.horizon_days,
    )
    record = sample_record(patients, hospital, rng)
    morphology = sample_morphology(patients, hospital, rng)
    strokes = sample_strokes(patients.risk, patients.strokes_start_s, patients.record_end_s, rng)
    return Block(hospital, patients, record, morphology, *strokes)


def truth(block: Block, horizon_days: int) -> dict[str, Floats]:
    """P(event within the horizon) of every visit, (v,) each, by what it is conditioned on.

    Each is an upper bound for a model with those inputs: the hospital's mix of patients is known, traits are read
    without error from the images of this visit, and all of the record before it counts, not the newest values alone.
    """
    patients, hospital = block.patients, block.hospital
    grid = risk_grid(hospital)
    event = event_probability(grid, horizon_days)
    image = image_evidence(block.morphology).log_likelihood(grid)
    clinical = log_likelihood(block.record, patients, hospital, grid)
    return {
        "p_oracle": event_probability(patients.risk, horizon_days)[patients.visit_patient],
        "p_image": posterior_mean(image, grid, hospital, event),
        "p_clinical": posterior_mean(clinical, grid, hospital, event),
        "p_multimodal": posterior_mean(image + clinical, grid, hospital, event),
    }
