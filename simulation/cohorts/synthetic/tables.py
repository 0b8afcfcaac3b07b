"""How do a block's record, labels and truth look as tables?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulation.cohorts.synthetic.block import Block, Plan, truth
from simulation.cohorts.synthetic.patients import DAY_S
from simulation.cohorts.synthetic.record import DIAGNOSES, MEASUREMENTS, NEVER, SEXES, SMOKING
from simulation.cohorts.synthetic.streams import Booleans, Floats, Integers, generator, timestamps
from simulation.cohorts.synthetic.strokes import STROKE_CODES

TASKS = ("detection", "risk")
_SEQUELAE = ("ICD10//I69.3", "ICD10//Z86.73")


def event_table(block: Block, plan: Plan, first: int) -> pd.DataFrame:
    """The MEDS events of a block, columns of ``shared.site_folder.EVENTS``."""
    record, patients = block.record, block.patients
    everyone = np.arange(len(patients.risk))
    known_sex = np.flatnonzero(record.sex >= 0)
    smokers = np.flatnonzero(record.smoking_s < NEVER)
    coded, disease = np.nonzero(record.diagnosis_s < NEVER)
    digits = np.round(record.value, 1)
    value = np.where(np.array([m.decimals for m in MEASUREMENTS])[record.value_kind] == 1, digits, np.round(digits))
    low, high = (np.array([getattr(m, side) for m in MEASUREMENTS])[record.value_kind] for side in ("low", "high"))
    measured = np.array([m.code for m in MEASUREMENTS])[record.value_kind]
    tables = [
        _events(everyone, "MEDS_BIRTH", record.birth_s),
        _events(known_sex, np.array(SEXES)[record.sex[known_sex]], None),
        _events(smokers, np.array(SMOKING)[record.smoking[smokers]], record.smoking_s[smokers]),
        _events(coded, _written(block, coded, disease), record.diagnosis_s[coded, disease]),
        _events(record.value_patient, measured, record.value_s, np.clip(value, low, high)),
        _events(block.stroke_patient, np.array(STROKE_CODES)[block.stroke_kind], block.stroke_s),
        _sequelae(block, generator(plan.seed, block.hospital.name, first, "sequelae")),
    ]
    table = pd.concat(tables, ignore_index=True)
    table["subject_id"] = patients.subject_id[table.pop("patient").to_numpy()]
    return table


def _events(
    patient: Integers,
    code: str | Sequence[str] | NDArray[np.str_],
    time_s: Integers | None,
    value: Floats | None = None,
) -> pd.DataFrame:
    never = np.full(len(patient), np.datetime64("NaT"), "datetime64[us]")
    time = never if time_s is None else timestamps(time_s)
    columns = {"patient": patient, "time": time, "code": code, "numeric_value": np.nan if value is None else value}
    return pd.DataFrame(columns).astype({"code": str, "numeric_value": np.float32})


def _written(block: Block, patient: Integers, disease: Integers) -> list[str]:
    """Codes as the hospital writes them: some with a fourth character."""
    ending = block.record.ending[patient, disease]
    habit = block.hospital.four_characters
    codes = []
    for number, part in zip(disease, ending, strict=True):
        fourth = DIAGNOSES[number].fourth
        suffix = fourth[int(part / habit * len(fourth))] if part < habit else ""
        codes.append(DIAGNOSES[number].code + suffix)
    return codes


def _sequelae(block: Block, rng: np.random.Generator) -> pd.DataFrame:
    """Codes that tell of an earlier stroke: a client must not take them as inputs."""
    told = np.flatnonzero(rng.random(len(block.stroke_s)) < 0.3)
    patient = block.stroke_patient[told]
    time_s = block.stroke_s[told] + rng.integers(30 * DAY_S, 200 * DAY_S, len(told))
    code = np.array(_SEQUELAE)[rng.integers(0, len(_SEQUELAE), len(told))]
    kept = time_s < block.patients.record_end_s[patient]
    return _events(patient[kept], code[kept], time_s[kept])


def label_tables(block: Block, horizon_days: int) -> dict[str, pd.DataFrame]:
    """Per task one row for every visit of a labelled patient, columns of ``shared.site_folder.LABELS``."""
    patients = block.patients
    visit = _labelled_visits(block)
    outcomes = _outcomes(block, horizon_days)
    common = {
        "subject_id": patients.subject_id[patients.visit_patient[visit]],
        "prediction_time": timestamps(patients.visit_time_s[visit]),
    }
    return {task: pd.DataFrame({**common, "boolean_value": outcomes[task][visit]}) for task in TASKS}


def truth_table(block: Block, horizon_days: int) -> pd.DataFrame:
    """The true probabilities behind every label, a row a labelled visit and task."""
    visit = _labelled_visits(block)
    probabilities = {name: values[visit] for name, values in truth(block, horizon_days).items()}
    common = {
        "site": block.hospital.name,
        "subject_id": block.patients.subject_id[block.patients.visit_patient[visit]],
        "prediction_time": timestamps(block.patients.visit_time_s[visit]),
    }
    # The rate of strokes is the same before a visit and after it, and so is the truth of both tasks.
    return pd.concat([pd.DataFrame({**common, "task": task, **probabilities}) for task in TASKS], ignore_index=True)


def _labelled_visits(block: Block) -> Integers:
    return np.flatnonzero(block.patients.labelled[block.patients.visit_patient])


def _outcomes(block: Block, horizon_days: int) -> dict[str, Booleans]:
    """Whether a stroke fell within the horizon before and after each visit, (v,)."""
    patients, horizon_s = block.patients, horizon_days * DAY_S
    visits = len(patients.visit_patient)
    found = {task: np.zeros(visits, dtype=bool) for task in TASKS}
    order = np.argsort(block.stroke_patient, kind="stable")
    stroke_patient, stroke_s = block.stroke_patient[order], block.stroke_s[order]
    low = np.searchsorted(stroke_patient, patients.visit_patient, "left")
    number = np.searchsorted(stroke_patient, patients.visit_patient, "right") - low
    visit = np.repeat(np.arange(visits), number)
    stroke = low[visit] + np.arange(len(visit)) - np.repeat(np.cumsum(number) - number, number)
    after_s = stroke_s[stroke] - patients.visit_time_s[visit]
    found["detection"][visit[(after_s <= 0) & (after_s >= -horizon_s)]] = True
    found["risk"][visit[(after_s > 0) & (after_s <= horizon_s)]] = True
    return found
