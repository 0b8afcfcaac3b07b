"""How far is a study? Everything that the next round depends on, written after every phase and read after a restart."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shared.checkpoints import load_arrays, save_arrays
from shared.config import Study
from shared.errors import CheckpointError
from shared.files import write_atomic
from shared.knobs import digest, dump, from_json, load, to_json
from shared.metrics import Scores
from shared.statistics import Statistics, Survey
from shared.weights import Weights

STATES, ROUNDS = "states", "rounds.jsonl"
KEPT = 3  # states; should the newest be damaged, the study goes on from the one before

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundRecord:
    """One line of ``rounds.jsonl``.

    ``tuning_loss`` and ``auroc`` are of the weights with which the round began; None in pretraining.
    ``norm`` is the median size of the sites' updates (``server.vetting``).
    ``failed`` names the sites that were left out of the round, with their reasons.
    ``seconds`` is how long the round took, ``site_seconds`` for how much of it the slowest site was at work.
    """

    stage: str
    round: int
    rounds: int
    loss: float | None = None
    tuning_loss: float | None = None
    auroc: float | None = None
    norm: float | None = None
    sites: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    site_seconds: float = 0.0

    def describe(self) -> str:
        """A round in one line: stage, round, loss, AUROC, sites answered, seconds."""
        asked = len(self.sites) + len(self.failed)
        loss = "" if self.loss is None else f"  loss {self.loss:.4f}"
        area = "" if self.auroc is None else f"  AUROC {self.auroc:.3f}"
        sites = f"  {len(self.sites)}/{asked} site{'s' if asked != 1 else ''}"
        return f"{self.stage:<8} {self.round:>3}/{self.rounds:<3}{loss}{area}{sites}  {self.seconds:.1f} s"


@dataclass(frozen=True)
class State:
    """A study between two phases.

    Attributes:
        nodes: names of the sites by node, so that one that fails after a restart is named.
        stage, round: the last training round that was completed; ``round`` 0 is the start of the stage.
        weights: the stage's objective after that round.
        memory: of the strategy.
        best, best_loss: the phase after which the weights had the lowest tuning loss of fine-tuning so far; its state
            is kept.
        evaluations: scores of the final weights on each site's held-out patients.
    """

    surveys: dict[str, Survey] = field(default_factory=dict)
    nodes: dict[int, str] = field(default_factory=dict)
    statistics: Statistics | None = None
    stage: str = ""
    round: int = 0
    weights: Weights = field(default_factory=dict)
    memory: Weights = field(default_factory=dict)
    best: int | None = None
    best_loss: float | None = None
    evaluations: dict[str, Scores] = field(default_factory=dict)
    records: tuple[RoundRecord, ...] = ()

    @property
    def phase(self) -> int:
        """How many phases (survey, rounds, evaluation) are done."""
        return len(self.records)

    @property
    def members(self) -> set[str]:
        """The sites that joined the study: those that took part in the survey."""
        return set(self.records[0].sites) if self.records else set()

    def recorded(self, record: RoundRecord) -> State:
        """The state with one more record."""
        return replace(self, records=(*self.records, record))


_ARRAY_PARTS = ("weights", "memory")


def save_state(folder: Path, study: Study, state: State) -> None:
    """Write the state, then the lines of ``rounds.jsonl`` that follow from it, and drop states that are not needed."""
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
        "best": state.best,
        "best_loss": state.best_loss,
        "evaluations": sums,
        "records": [asdict(record) for record in state.records],
    }
    save_arrays(_file(folder, state.phase), arrays, facts)
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in state.records)
    write_atomic(folder / ROUNDS, lines.encode())
    for phase, file in _files(folder):
        if phase <= state.phase - KEPT and phase != state.best:
            file.unlink()


def load_state(folder: Path, study: Study) -> State:
    """The newest undamaged state of a study in a folder; a new one where none was written.

    Raises:
        CheckpointError: all states are damaged, or they are another study's.
    """
    damage: CheckpointError | None = None
    for _, file in _files(folder):
        try:
            arrays, facts = load_arrays(file)
        except CheckpointError as error:
            log.warning("%s", error)
            damage = damage or error
            continue
        return _to_state(file, study, arrays, facts)
    if damage is not None:
        raise damage
    return State()


def phases_done(folder: Path) -> int:
    """How many phases of a study in a folder are done, by the newest state."""
    return max((phase for phase, _ in _files(folder)), default=0)


def load_weights(folder: Path, phase: int) -> Weights:
    """The weights after one of the phases whose state is kept; raises ``CheckpointError``."""
    arrays, _ = load_arrays(_file(folder, phase))
    return {name.removeprefix("weights/"): array for name, array in arrays.items() if name.startswith("weights/")}


def _file(folder: Path, phase: int) -> Path:
    return folder / STATES / f"{phase:06d}.safetensors"


def _files(folder: Path) -> list[tuple[int, Path]]:
    """The phases of which there is a state, the newest first."""
    files = sorted((folder / STATES).glob("[0-9]*.safetensors"), reverse=True)
    return [(int(file.stem), file) for file in files]


def _to_state(file: Path, study: Study, arrays: Weights, facts: dict[str, Any]) -> State:
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
        best=facts["best"],
        best_loss=facts["best_loss"],
        evaluations={site: _scores(parts, site, *sums) for site, sums in facts["evaluations"].items()},
        records=tuple(RoundRecord(**record) for record in facts["records"]),
        **{part: parts.get(part, {}) for part in _ARRAY_PARTS},
    )


def _scores(parts: dict[str, Weights], site: str, log_loss: float, squares: float) -> Scores:
    positives, negatives = (parts[part][site].astype(np.int64) for part in ("positives", "negatives"))
    return Scores(positives, negatives, log_loss, squares)
