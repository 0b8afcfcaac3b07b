"""What did a run leave behind? summary.json and rounds.jsonl, read into frozen values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.errors import FedretinaError

SCHEMA = 1
# Presentation order, best known first; names that are not here follow in the order of the file.
ARMS = ("federated", "centralised", "local", "federated_scratch")
INPUTS = ("multimodal", "image", "clinical")
_RESTORE = "Restore the file from the run that wrote it, or run the study again."


@dataclass(frozen=True)
class Bin:
    """Cases of similar predicted probability: their mean prediction, the share that had the outcome, their number."""

    predicted: float
    observed: float
    cases: int | None


@dataclass(frozen=True)
class Score:
    """One arm with one kind of input on the held-out patients. What the run did not compute is None or empty."""

    arm: str
    inputs: str
    auroc: float | None
    interval: tuple[float, float] | None
    pooled: float | None
    auprc: float | None
    brier: float | None
    slope: float | None
    intercept: float | None
    bins: tuple[Bin, ...]
    cases: int | None
    positives: int | None
    roc: tuple[tuple[float, float], ...]
    sites: Mapping[str, float | None]
    seconds: float | None


@dataclass(frozen=True)
class Site:
    """What one hospital brought; ``auroc`` is the jointly trained model's on its held-out patients."""

    name: str
    patients: int | None
    scans: int | None
    labelled: int | None
    modalities: tuple[str, ...]
    auroc: float | None
    prevalence: float | None
    quarantined: int | None
    fault: str


@dataclass(frozen=True)
class Round:
    """One round of one arm; ``failed`` maps a hospital to its reason."""

    arm: str
    inputs: str
    stage: str
    number: int
    loss: float | None
    tuning_loss: float | None
    auroc: float | None
    sites: tuple[str, ...]
    failed: Mapping[str, str]


@dataclass(frozen=True)
class Noise:
    """Of one message of a stage: deviation of the noise over C, chance of a patient to be in a step, steps."""

    noise_multiplier: float
    sampling_rate: float
    steps: int


@dataclass(frozen=True)
class Privacy:
    """What the study planned for privacy; ``kind`` none without. ``sent`` says what a message of a stage holds."""

    kind: str
    epsilon: float | None
    epsilon_rdp: float | None
    delta: float | None
    clip: float | None
    accountant: str
    pretraining: str
    stages: Mapping[str, Noise]
    sent: Mapping[str, str]

    @property
    def is_private(self) -> bool:
        return self.kind != "none"


@dataclass(frozen=True)
class Run:
    """Everything the report is made of. ``unreadable`` counts the lines of rounds.jsonl that were left out."""

    name: str
    task: str
    horizon_days: int | None
    scores: tuple[Score, ...]
    ceiling: Mapping[str, float]
    sites: tuple[Site, ...]
    rounds: tuple[Round, ...]
    unreadable: int
    cohort: Mapping[str, object]
    privacy: Privacy
    seconds: Mapping[str, float]
    provenance: Mapping[str, str]
    summed: bool = False  # nobody has the figures of single hospitals

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms with a score, in presentation order."""
        return tuple(dict.fromkeys(score.arm for score in self.scores))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The kinds of input with a score, in presentation order."""
        return _ordered({score.inputs for score in self.scores}, INPUTS)

    def score(self, arm: str, inputs: str) -> Score | None:
        return next((score for score in self.scores if (score.arm, score.inputs) == (arm, inputs)), None)

    @property
    def headline(self) -> Score | None:
        """The score the page opens with: the first arm with the richest input that could be scored at all."""
        scored = (score for score in self.scores if score.auroc is not None)
        return next(scored, self.scores[0] if self.scores else None)


@dataclass(frozen=True)
class Fields:
    """One JSON object and the path by which its owner knows it. A wrong type raises FedretinaError."""

    path: str
    values: Mapping[str, object]

    def number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number", value)
        return float(value) if math.isfinite(value) else None

    def count(self, key: str) -> int | None:
        value = self.number(key)
        return None if value is None else round(value)

    def text(self, key: str) -> str:
        value = self.values.get(key)
        return "" if value is None else str(value)

    def inside(self, key: str) -> Fields:
        value = self.values.get(key)
        if not isinstance(value, dict | None):
            raise self._wrong(key, "an object", value)
        return Fields(f"{self.path}.{key}", value or {})

    def objects(self) -> Iterator[tuple[str, Fields]]:
        return ((key, self.inside(key)) for key in self.values)

    def numbers(self) -> dict[str, float]:
        found = {key: self.number(key) for key in self.values}
        return {key: value for key, value in found.items() if value is not None}

    def elements(self, key: str) -> list[object]:
        value = self.values.get(key)
        if not isinstance(value, list | None):
            raise self._wrong(key, "a list", value)
        return value or []

    def each(self, key: str) -> Iterator[Fields]:
        for position, value in enumerate(self.elements(key)):
            yield Fields(f"{self.path}.{key}", {str(position): value}).inside(str(position))

    def points(self, key: str) -> tuple[tuple[float, float], ...]:
        """(N, 2) pairs of finite numbers."""
        return tuple(self._pair(key, value) for value in self.elements(key))

    def pair(self, key: str) -> tuple[float, float] | None:
        """Two finite numbers; None where either is unknown, as for an AUROC without both classes."""
        value = self.values.get(key)
        unknown = value is None or (isinstance(value, list) and any(end is None for end in value))
        return None if unknown else self._pair(key, value)

    def _pair(self, key: str, value: object) -> tuple[float, float]:
        if not isinstance(value, list) or len(value) != 2:
            raise self._wrong(key, "made of pairs", value)
        first, second = (Fields(f"{self.path}.{key}", {"value": end}).number("value") for end in value)
        if first is None or second is None:
            raise self._wrong(key, "made of finite numbers", value)
        return first, second

    def _wrong(self, key: str, kind: str, value: object) -> FedretinaError:
        return FedretinaError(f"{self.path}.{key}", f"must be {kind}", value=value, remedy=_RESTORE)


def read_run(run: Path) -> Run:
    """The run in folder ``run``.

    Raises:
        FedretinaError: summary.json is missing, damaged or of another schema. Damaged lines of rounds.jsonl do not
            raise: a run that was cut short leaves a torn last line, and its report should still be had.
    """
    summary = _summary(run / "summary.json")
    scores, task = _scores(summary.inside("arms")), summary.inside("task")
    only = f"{scores[0].arm}.{scores[0].inputs}" if scores else ""  # a run of one arm does not name it
    rounds, unreadable = _rounds(run / "rounds.jsonl", only)
    labels = {"study digest": "study_digest", "seed": "seed", "version": "version", "command": "command"}
    return Run(
        name=summary.text("name") or "study",
        task=task.text("name"),
        horizon_days=task.count("horizon_days"),
        scores=scores,
        ceiling={name: best for name, each in summary.inside("ceiling").objects() if (best := each.number("auroc"))},
        sites=tuple(_site(each) for each in summary.each("sites")),
        rounds=rounds,
        unreadable=unreadable,
        cohort=summary.inside("cohort").values,
        privacy=_privacy(summary.inside("privacy")),
        seconds=summary.inside("seconds").numbers(),
        summed=summary.inside("secure_aggregation").text("kind") == "secagg",
        provenance={label: summary.text(key) for label, key in labels.items() if summary.text(key)},
    )


def _summary(path: Path) -> Fields:
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "Give the folder of a finished run; it holds summary.json."
        raise FedretinaError(
            path.name, "must exist in the run's folder", value=str(path.parent), remedy=remedy
        ) from None
    except (OSError, ValueError) as fault:
        raise FedretinaError(str(path), "must be readable JSON", value=str(fault), remedy=_RESTORE) from fault
    if not isinstance(values, dict):
        raise FedretinaError(str(path), "must hold one JSON object", value=type(values).__name__, remedy=_RESTORE)
    if values.get("schema", SCHEMA) != SCHEMA:
        remedy = "Make the report with the fedretina version that wrote the run."
        raise FedretinaError("summary.json: schema", f"must be {SCHEMA}", value=values["schema"], remedy=remedy)
    return Fields("summary.json", values)


def _rounds(path: Path, arm: str) -> tuple[tuple[Round, ...], int]:
    """The readable rounds in file order, and how many lines were not."""
    rounds, unreadable = [], 0
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for line in filter(None, map(bytes.strip, lines)):
        try:
            rounds.append(_round(Fields("rounds.jsonl", {"line": _parsed(line.decode())}).inside("line"), arm))
        except (ValueError, FedretinaError):
            unreadable += 1
    return tuple(rounds), unreadable


def _parsed(text: str) -> object:
    """JSON with NaN and infinities as null, and every string printable."""
    return _printable(json.loads(text, parse_constant=lambda _: None))


def _printable(value: object) -> object:
    """Control characters and lone surrogates are legal in JSON and in no XML: none gets past here."""
    if isinstance(value, str):
        return "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in value)
    if isinstance(value, dict):
        return {str(_printable(key)): _printable(inner) for key, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list) else value


def _scores(arms: Fields) -> tuple[Score, ...]:
    found = {(arm, inputs): fields for arm, each in arms.objects() for inputs, fields in each.objects()}
    return tuple(
        _score(arm, inputs, found[arm, inputs])
        for arm in _ordered(arms.values, ARMS)
        for inputs in _ordered([inputs for name, inputs in found if name == arm], INPUTS)
    )


def _score(arm: str, inputs: str, fields: Fields) -> Score:
    calibration, sites = fields.inside("calibration"), fields.inside("sites")
    return Score(
        arm=arm,
        inputs=inputs,
        auroc=fields.number("auroc"),
        interval=fields.pair("auroc_interval"),
        pooled=fields.number("auroc_pooled"),
        auprc=fields.number("auprc"),
        brier=fields.number("brier"),
        slope=calibration.number("slope"),
        intercept=calibration.number("intercept"),
        bins=tuple(_bins(calibration)),
        cases=fields.count("cases"),
        positives=fields.count("positives"),
        roc=fields.points("roc"),
        sites={name: sites.number(name) for name in sites.values},
        seconds=fields.number("seconds"),
    )


def _bins(calibration: Fields) -> Iterator[Bin]:
    for each in calibration.each("bins"):
        predicted, observed = each.number("predicted"), each.number("observed")
        if predicted is not None and observed is not None:  # an empty bin has neither
            yield Bin(predicted, observed, each.count("cases"))


def _site(fields: Fields) -> Site:
    return Site(
        name=fields.text("name"),
        patients=fields.count("patients"),
        scans=fields.count("scans"),
        labelled=fields.count("labelled"),
        modalities=tuple(map(str, fields.elements("modalities"))),
        auroc=fields.number("auroc"),
        prevalence=fields.number("prevalence"),
        quarantined=fields.count("quarantined"),
        fault=fields.text("fault"),
    )


def _privacy(fields: Fields) -> Privacy:
    sent, stages = fields.inside("sent"), fields.inside("stages")
    return Privacy(
        kind=fields.text("kind") or "none",
        epsilon=fields.number("epsilon"),
        epsilon_rdp=fields.number("epsilon_rdp"),
        delta=fields.number("delta"),
        clip=fields.number("clip"),
        accountant=fields.text("accountant"),
        pretraining=fields.text("pretraining"),
        stages={stage: _noise(each) for stage, each in stages.objects()},
        sent={stage: sent.text(stage) for stage in sent.values},
    )


def _noise(fields: Fields) -> Noise:
    return Noise(
        fields.number("noise_multiplier") or 0.0, fields.number("sampling_rate") or 0.0, fields.count("steps") or 0
    )


def _round(fields: Fields, default: str) -> Round:
    arm, _, rest = (fields.text("arm") or default).partition(".")
    failed = fields.inside("failed")
    return Round(
        arm=arm,
        inputs=rest.rpartition(".")[2],  # an arm may name one hospital in between
        stage=fields.text("stage"),
        number=fields.count("round") or 0,
        loss=fields.number("loss"),
        tuning_loss=fields.number("tuning_loss"),
        auroc=fields.number("auroc"),
        sites=tuple(map(str, fields.elements("sites"))),
        failed={name: failed.text(name) for name in failed.values},
    )


def _ordered(names: Iterable[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """``names`` with the known ones first, in their order; the others keep theirs."""
    given = list(dict.fromkeys(names))
    return tuple(name for name in known if name in given) + tuple(name for name in given if name not in known)
