"""How far is a study? Everything that the next round depends on, written after every phase and read after a restart."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shared.checkpoints import load_arrays, save_arrays, write_atomic
from shared.config import Study
from shared.errors import CheckpointError
from shared.knobs import digest, dump, from_json, load, to_json
from shared.metrics import Scores
from shared.statistics import Statistics, Survey
from shared.weights import Weights

STATE, ROUNDS = "state.safetensors", "rounds.jsonl"


@dataclass(frozen=True)
class RoundRecord:
    """One line of ``rounds.jsonl``.

    ``tuning_loss`` and ``auroc`` are of the weights with which the round began; None in pretraining.
    ``failed`` names the sites that were left out of the round, with their reasons.
    """

    stage: str
    round: int
    rounds: int
    loss: float | None = None
    tuning_loss: float | None = None
    auroc: float | None = None
    sites: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class State:
    """A study between two phases.

    Attributes:
        nodes: names of the sites by node, so that one that fails after a restart is named.
        stage, round: the last training round that was completed; ``round`` 0 is the start of the stage.
        weights: the stage's objective after that round.
        memory: of the strategy.
        pretrained: weights at the end of the pretraining stage.
        best, best_loss: weights with the lowest tuning loss of the fine-tuning rounds so far.
        evaluations: scores of the final weights on each site's held-out patients.
    """

    surveys: dict[str, Survey] = field(default_factory=dict)
    nodes: dict[int, str] = field(default_factory=dict)
    statistics: Statistics | None = None
    stage: str = ""
    round: int = 0
    weights: Weights = field(default_factory=dict)
    memory: Weights = field(default_factory=dict)
    pretrained: Weights = field(default_factory=dict)
    best: Weights = field(default_factory=dict)
    best_loss: float | None = None
    evaluations: dict[str, Scores] = field(default_factory=dict)
    records: tuple[RoundRecord, ...] = ()

    def recorded(self, record: RoundRecord) -> State:
        """The state with one more record."""
        return replace(self, records=(*self.records, record))


_ARRAY_PARTS = ("weights", "memory", "pretrained", "best")


def save_state(folder: Path, study: Study, state: State) -> None:
    """Write the state, then the lines of ``rounds.jsonl`` that follow from it."""
    arrays: dict[str, Any] = {
        f"{part}/{name}": array for part in _ARRAY_PARTS for name, array in getattr(state, part).items()
    }
    sums = {}
    for site, scores in state.evaluations.items():
        arrays |= {f"positives/{site}": scores.positives, f"negatives/{site}": scores.negatives}
        sums[site] = [scores.log_loss, scores.squares]
    facts = {
        "kind": "state",
        "study_digest": digest(study),
        "surveys": {site: dump(survey) for site, survey in state.surveys.items()},
        "nodes": list(state.nodes.items()),  # JSON has no integer keys
        "statistics": None if state.statistics is None else to_json(state.statistics),
        "stage": state.stage,
        "round": state.round,
        "best_loss": state.best_loss,
        "evaluations": sums,
        "records": [asdict(record) for record in state.records],
    }
    save_arrays(folder / STATE, arrays, facts)
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in state.records)
    write_atomic(folder / ROUNDS, lines.encode())


def load_state(folder: Path, study: Study) -> State:
    """The state of a study in a folder; a new one where none was written.

    Raises:
        CheckpointError: a damaged file, or the state of another study.
    """
    file = folder / STATE
    if not file.exists():
        return State()
    arrays, facts = load_arrays(file)
    if facts.get("study_digest") != digest(study):
        remedy = "Resume with the study's own settings, or choose another run.dir."
        found = str(facts.get("study_digest"))[:12]
        raise CheckpointError(str(file), f"must be of study {digest(study)[:12]}", value=found, remedy=remedy)
    parts: dict[str, Weights] = {}
    for key, array in arrays.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = array
    return State(
        surveys={site: load(Survey, data) for site, data in facts["surveys"].items()},
        nodes=dict(facts["nodes"]),
        statistics=None if facts["statistics"] is None else from_json(Statistics, facts["statistics"]),
        stage=facts["stage"],
        round=facts["round"],
        best_loss=facts["best_loss"],
        evaluations={site: _scores(parts, site, *sums) for site, sums in facts["evaluations"].items()},
        records=tuple(RoundRecord(**record) for record in facts["records"]),
        **{part: parts.get(part, {}) for part in _ARRAY_PARTS},
    )


def _scores(parts: dict[str, Weights], site: str, log_loss: float, squares: float) -> Scores:
    positives, negatives = (parts[part][site].astype(np.int64) for part in ("positives", "negatives"))
    return Scores(positives, negatives, log_loss, squares)
