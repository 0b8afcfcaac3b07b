"""What did a study find? The figures of ``summary.json``, made of the sites' counts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from server.report.privacy import privacy_facts
from server.report.record import INPUTS, SCHEMA
from server.state import State
from shared.config import CLINICAL, Study
from shared.files import write_atomic
from shared.knobs import digest, dump
from shared.metrics import (
    Scores,
    auroc,
    average_precision,
    calibration_bins,
    empty_scores,
    mean_auroc,
    recalibration,
    roc,
)
from shared.statistics import Survey

SUMMARY = "summary.json"
_DIGITS = 5


def study_summary(study: Study, command: str, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What ``summary.json`` says of any study, before its results; its keys are described in docs/summary.md."""
    return {
        "schema": SCHEMA,
        "version": version("fedretina"),
        "name": study.name,
        "seed": study.seed,
        "study_digest": digest(study),
        "task": dump(study.task),
        "secure_aggregation": dump(study.secure_aggregation),
        "command": command,
        "seconds": dict(seconds),
        "privacy": privacy_facts(study),
    }


def inputs_name(study: Study) -> str:
    """Under which name the results of a study's modalities stand."""
    multimodal, image, clinical = INPUTS
    if CLINICAL not in study.modalities:
        return image
    return multimodal if study.image_modalities else clinical


def arm_figures(evaluations: Mapping[str, Scores], seconds: float) -> dict[str, Any]:
    """The figures of one arm.

    Args:
        evaluations: scores on the held-out cases of each site.
    """
    pooled = sum(evaluations.values(), empty_scores())
    mean, interval = mean_auroc(list(evaluations.values()))
    line = recalibration(pooled)
    cases = max(pooled.cases, 1)
    return {
        "auroc": rounded(mean),
        "auroc_interval": None if interval is None else [rounded(bound) for bound in interval],
        "auroc_pooled": rounded(auroc(pooled)),
        "auprc": rounded(mean_over_sites([average_precision(scores) for scores in evaluations.values()])),
        "brier": rounded(pooled.squares / cases),
        "log_loss": rounded(pooled.log_loss / cases),
        "calibration": {
            "slope": None if line is None else rounded(line[0]),
            "intercept": None if line is None else rounded(line[1]),
            "bins": calibration_bins(pooled),
        },
        "cases": pooled.cases,
        "positives": int(pooled.positives.sum()),
        "roc": roc(pooled),
        "sites": {site: rounded(auroc(scores)) for site, scores in sorted(evaluations.items())},
        "seconds": round(seconds, 2),
    }


def site_rows(state: State) -> list[dict[str, Any]]:
    """One row a site of a finished study: what it has, how its patients are predicted, why it was left out."""
    faults = {site: reason for record in state.records for site, reason in record.failed.items()}
    rows = [_site_row(site, survey, state, faults.get(site)) for site, survey in sorted(state.surveys.items())]
    unsurveyed = sorted(set(faults) - set(state.surveys))
    return rows + [{"name": site, "patients": None, "modalities": [], "fault": faults[site]} for site in unsurveyed]


def _site_row(site: str, survey: Survey, state: State, fault: str | None) -> dict[str, Any]:
    scores = state.evaluations.get(site)
    return {
        "name": site,
        "patients": survey.patients,
        "scans": survey.oct_scans + survey.ir_scans,
        "labelled": survey.labelled,
        "modalities": list(survey.modalities()),
        "prevalence": rounded(survey.positive / survey.labelled) if survey.labelled else None,
        "quarantined": survey.quarantined,
        "auroc": None if scores is None else rounded(auroc(scores)),
        "fault": fault,
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json``, whole or not at all."""
    write_atomic(folder / SUMMARY, json.dumps(summary, indent=1, allow_nan=False).encode())


def mean_over_sites(values: Sequence[float | None]) -> float | None:
    """The mean of the sites that have a value, None when none has: a site may lack cases of a class."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def rounded(value: float | None) -> float | None:
    """A figure as ``summary.json`` states it."""
    return None if value is None else round(value, _DIGITS)
