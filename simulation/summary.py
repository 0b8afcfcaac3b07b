"""What did a comparison find? ``summary.json`` and ``rounds.jsonl`` of a simulated run, and the best possible AUROC."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from client.splits import HELD_OUT, assign_splits, split_key
from server.report.summary import arm_figures, mean_over_sites, rounded, site_rows, study_summary
from server.state import ROUNDS, State, load_state
from shared.files import write_atomic
from shared.knobs import dump
from shared.metrics import Scores, mean_auroc, score
from shared.site_folder import SiteFolder
from simulation.arms import Arm
from simulation.cohorts.synthetic.ceiling import expected_auroc
from simulation.config import INPUTS, Experiment


def collect_rounds(chains: Sequence[Sequence[Arm]], folder: Path) -> None:
    """Write the run's ``rounds.jsonl``: the rounds of every arm, each with the arm's name."""
    lines = [
        json.dumps({"arm": arm.name, **asdict(record)})
        for chain in chains
        for arm in chain
        for record in load_state(arm.folder, arm.study).records
    ]
    write_atomic(folder / ROUNDS, "".join(f"{line}\n" for line in lines).encode())


def summarise(
    experiment: Experiment, chains: Sequence[Sequence[Arm]], truth: Path | None, command: str, seconds: dict[str, float]
) -> dict[str, Any]:
    """The content of ``summary.json``; its keys are described in docs/summary.md."""
    states = {arm: load_state(arm.folder, arm.study) for chain in chains for arm in chain}
    first = next(iter(states))
    summary: dict[str, Any] = {
        **study_summary(experiment.study, command, seconds),
        "cohort": dump(experiment.cohort),
        "arms": _arms(states),
        "sites": _sites(states, first),
    }
    if truth is not None and experiment.finetune.rounds:
        judges = sorted({judge for arm in states for judge in arm.judges})
        summary["ceiling"] = _ceiling(experiment, truth, judges)
    return summary


def _arms(states: dict[Arm, State]) -> dict[str, Any]:
    """Figures by kind and inputs; a local arm's sites are put together, each judged by its own model."""
    evaluations: dict[tuple[str, str], dict[str, Scores]] = {}
    seconds: dict[tuple[str, str], float] = {}
    for arm, state in states.items():
        key = (arm.kind, arm.inputs)
        evaluations.setdefault(key, {}).update(state.evaluations)
        seconds[key] = seconds.get(key, 0.0) + sum(record.seconds for record in state.records)
    arms: dict[str, Any] = {}
    for (kind, inputs), scores in evaluations.items():
        if scores:
            arms.setdefault(kind, {})[inputs] = arm_figures(scores, seconds[kind, inputs])
    return arms


def _sites(states: dict[Arm, State], first: Arm) -> list[dict[str, Any]]:
    """One row a site; when the first arm is not over all sites, the rows of its siblings besides."""
    rows: dict[str, dict[str, Any]] = {}
    for arm, state in states.items():
        if arm.kind == first.kind and arm.inputs == first.inputs:
            rows |= {row["name"]: row for row in site_rows(state)}
    return list(rows.values())


def _ceiling(experiment: Experiment, truth_file: Path, sites: Sequence[Path]) -> dict[str, dict[str, float | None]]:
    """The AUROC of the true posteriors on the held-out cases, averaged over sites as the arms' is.

    ``auroc`` ranks the very cases and outcomes by which the arms are judged; ``auroc_expected`` is its expectation over
    outcomes, free of their luck.
    """
    truth = pd.read_parquet(truth_file)
    truth = truth[truth["task"] == experiment.task.name]
    ceiling: dict[str, dict[str, float | None]] = {}
    held_out = [_held_out(experiment, truth, SiteFolder(path)) for path in sites]
    for name in INPUTS:
        posteriors = [cases[f"p_{name}"].to_numpy(np.float64) for cases in held_out]
        outcomes = [cases["boolean_value"].to_numpy(np.float64) for cases in held_out]
        scores = [score(np.log(p / (1.0 - p)), labels) for p, labels in zip(posteriors, outcomes, strict=True)]
        expected = mean_over_sites([expected_auroc(p, p) for p in posteriors])
        ceiling[name] = {"auroc": rounded(mean_auroc(scores)[0]), "auroc_expected": rounded(expected)}
    return ceiling


def _held_out(experiment: Experiment, truth: pd.DataFrame, site: SiteFolder) -> pd.DataFrame:
    """A site's held-out cases with their outcomes and true probabilities."""
    keys = ["subject_id", "prediction_time"]
    cases = site.labels(experiment.task.name).merge(truth[truth["site"] == site.name], on=keys, validate="1:1")
    splits = assign_splits(cases["subject_id"], experiment.splits, split_key(experiment.study), site.subject_splits())
    held_out: pd.DataFrame = cases[splits == HELD_OUT]
    return held_out
