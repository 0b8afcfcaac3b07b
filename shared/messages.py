"""What crosses the border of a site, and under which keys? The only file that knows the records of a message.

Coordinator to site: a ``Task``. Site to coordinator: a ``SurveyReply``, an ``Update``, an ``Evaluation`` or an error;
in a study with secure aggregation an ``Advert``, ``Sealed`` shares, a ``Masked`` vector, ``Opened`` shares or an error.
Every decoder checks names, types, shapes and finiteness, and refuses the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np
import safetensors.numpy
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, MetricRecordValues, RecordDict
from numpy.typing import NDArray

from shared.code import code_digest
from shared.config import EVALUATE, STAGES, SURVEY, SecAgg, Study
from shared.errors import ConfigError, MessageError
from shared.knobs import Tree, from_json, to_json
from shared.metrics import Scores
from shared.secure_aggregation.masking import Vector
from shared.secure_aggregation.steps import (
    Advert,
    Advertise,
    Mask,
    Opened,
    Sealed,
    Share,
    Step,
    step_from_json,
    step_to_json,
)
from shared.statistics import Statistics, Survey, numeric_names
from shared.weights import Weights

PROTOCOL = 1
ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"  # the names that Flower's strategies expect
EXAMPLES = "num-examples"  # the weight by which Flower's strategies average
STEP, _REPLY, _SUMS = "secure-aggregation", "reply", "sums"
_PIECE, _PIECE_BYTES = "safetensors", 10 * 2**20  # two of the chunks in which Flower sends arrays
FAILED_AT_SITE, AWAITS_APPROVAL = 1000, 1001  # error codes of applications start at 1000

T = TypeVar("T", int, str, float)
R = TypeVar("R", bound=Tree)


@dataclass(frozen=True)
class Task:
    """What a site is asked to do.

    Attributes:
        stage: survey, pretrain, finetune or evaluate.
        round: 1 to ``rounds``; 0 outside training.
        split: the split to evaluate, in stage evaluate.
        statistics: of the federation; None in stage survey.
        weights: to start from or to evaluate; empty in stage survey.
        code: digest of the code that the coordinator has for sites.
        step: of a sum; None in a study without secure aggregation.
    """

    study: Study
    stage: str
    round: int
    rounds: int
    split: str
    statistics: Statistics | None
    weights: Weights
    code: str = field(default_factory=code_digest)
    step: Step | None = None

    @staticmethod
    def to_survey(study: Study) -> Task:
        """The one task of the survey, whose noised count is the same wherever it is used again."""
        return Task(study, SURVEY, 0, 0, "", None, {})


@dataclass(frozen=True)
class SurveyReply:
    """Who a site is and what it has."""

    site: str
    survey: Survey


@dataclass(frozen=True)
class Update:
    """What a site learned in one round.

    Attributes:
        stage, round: of the task that this answers.
        examples: training examples of the site, the weight of its update.
        loss: mean training loss; None where it must not be told.
        tuning: scores of the incoming weights on the site's tuning split; without cases where there is none.
    """

    site: str
    stage: str
    round: int
    weights: Weights
    examples: int
    loss: float | None
    tuning: Scores
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """How the weights did on a split of one site."""

    site: str
    scores: Scores
    seconds: float


@dataclass(frozen=True)
class Masked:
    """What a site adds to a sum; nothing can be read of it before the sum is complete."""

    site: str
    vector: Vector


def task_content(task: Task) -> RecordDict:
    """A task as the content of a message; the steps of a sum are put in by ``with_step``."""
    config = ConfigRecord(
        {
            "protocol": PROTOCOL,
            "study": to_json(task.study),
            "stage": task.stage,
            "round": task.round,
            "rounds": task.rounds,
            "code": task.code,
            "split": task.split,
            "statistics": "" if task.statistics is None else to_json(task.statistics),
        }
    )
    return RecordDict({ARRAYS: encode_weights(task.weights), CONFIG: config})


@lru_cache(maxsize=16)
def _study(text: str) -> Study:
    """What is said in every task of a study is read once."""
    return from_json(Study, text)


def decode_task(content: RecordDict) -> Task:
    """The inverse of ``task_content``.

    Raises:
        MessageError: another protocol, a missing or ill-typed field, or a study that does not load.
    """
    config = content.config_records.get(CONFIG)
    if config is None:
        raise MessageError("task", f"must have a record {CONFIG}")
    if _field(config, "protocol", int) != PROTOCOL:
        remedy = "Install the same version of fedretina at the coordinator and the site."
        raise MessageError("task.protocol", f"must be {PROTOCOL}", value=config["protocol"], remedy=remedy)
    try:
        study = _study(_field(config, "study", str))
        text = _field(config, "statistics", str)
        statistics = from_json(Statistics, text) if text else None
    except ConfigError as error:
        raise MessageError(f"task: {error.name}", error.rule, value=error.value, remedy=error.remedy) from None
    stage, number, rounds = _field(config, "stage", str), _field(config, "round", int), _field(config, "rounds", int)
    if stage not in STAGES:
        raise MessageError("task.stage", f"must be one of {', '.join(STAGES)}", value=stage)
    if not 0 <= number <= rounds:
        raise MessageError("task.round", f"must be >= 0 and <= task.rounds ({rounds})", value=number)
    if statistics is not None:
        width = len(numeric_names(study))
        if not len(statistics.mean) == len(statistics.deviation) == width:
            raise MessageError("task: statistics", f"must be of the study's {width} numeric features")
    arrays, asked = content.array_records.get(ARRAYS), content.config_records.get(STEP)
    if asked is not None and not isinstance(study.secure_aggregation, SecAgg):
        raise MessageError("task.step", "must not be given in a study whose answers are not summed")
    return Task(
        study=study,
        stage=stage,
        round=number,
        rounds=rounds,
        split=_field(config, "split", str),
        statistics=statistics,
        weights={} if arrays is None else decode_weights(arrays),
        code=_field(config, "code", str),
        step=None if asked is None else _decode_step(asked),
    )


def with_step(content: RecordDict, step: Step) -> RecordDict:
    """The content of a task, asking for one step of a sum."""
    return RecordDict({**content, STEP: ConfigRecord({"step": step_to_json(step)})})


def _decode_step(record: ConfigRecord) -> Step:
    try:
        return step_from_json(_field(record, "step", str))
    except ConfigError as error:
        raise MessageError(f"task: {error.name}", error.rule, value=error.value) from None


def step_reply_content(reply: Tree) -> RecordDict:
    """The answer to a step, but to the masking one, as the content of a message."""
    return RecordDict({CONFIG: ConfigRecord({_REPLY: to_json(reply)})})


def decode_step_reply(kind: type[R], content: RecordDict) -> R:
    """The inverse of ``step_reply_content``; raises ``MessageError``."""
    try:
        return from_json(kind, _field(_config(content), _REPLY, str))
    except ConfigError as error:
        raise MessageError(f"reply: {error.name}", error.rule, value=error.value) from None


def masked_content(masked: Masked) -> RecordDict:
    """A masked vector as the content of a message."""
    size, words = _PIECE_BYTES // 4, masked.vector.words
    parts = {f"{start:012d}": words[start : start + size] for start in range(0, len(words), size)}
    arrays = encode_weights({**parts, _SUMS: masked.vector.sums})
    return RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({"site": masked.site})})


def decode_masked(content: RecordDict, expected: Vector) -> Masked:
    """The inverse of ``masked_content``, which takes the arrays out of it.

    Args:
        expected: a vector of the lengths that must come back.

    Raises:
        MessageError: anything missing, or of another type or length.
    """
    arrays = content.array_records.get(ARRAYS)
    if arrays is None:
        raise MessageError("masked vector", f"must have a record {ARRAYS}")
    found: Weights = {}
    for place in sorted(arrays):
        found |= _load_piece(place, arrays.pop(place))
    sums = found.pop(_SUMS, np.empty(0))
    words = [found[name] for name in sorted(found)]
    for name, like, parts in (("words", expected.words, words), ("sums", expected.sums, [sums])):
        length = sum(part.size for part in parts)
        if length != like.size or any(part.dtype != like.dtype or part.ndim != 1 for part in parts):
            rule = f"must be {like.size} numbers of {like.dtype}"
            raise MessageError(f"masked vector: {name}", rule, value=length)
    whole = np.concatenate([np.empty(0, np.uint32), *words], dtype=np.uint32)
    return Masked(_field(_config(content), "site", str), Vector(whole, sums.astype(np.uint64)))


def survey_content(reply: SurveyReply) -> RecordDict:
    """A survey as the content of a message."""
    return RecordDict({CONFIG: ConfigRecord({"site": reply.site, "survey": to_json(reply.survey)})})


def decode_survey(content: RecordDict, study: Study) -> SurveyReply:
    """The inverse of ``survey_content``; raises ``MessageError``, also for sums of other features than the study's."""
    config = _config(content)
    try:
        survey = from_json(Survey, _field(config, "survey", str))
    except ConfigError as error:
        raise MessageError(f"survey: {error.name}", error.rule, value=error.value) from None
    width = len(numeric_names(study))
    if not len(survey.counts) == len(survey.sums) == len(survey.squares) == width:
        raise MessageError("survey", f"must be of the study's {width} numeric features", value=len(survey.counts))
    return SurveyReply(_field(config, "site", str), survey)


def update_content(update: Update) -> RecordDict:
    """An update as the content of a message, in the form that Flower's strategies aggregate."""
    metrics: dict[str, MetricRecordValues] = {
        EXAMPLES: update.examples,
        **({} if update.loss is None else {"loss": update.loss}),
        **_score_metrics(update.tuning),
    }
    return RecordDict(
        {
            ARRAYS: encode_weights(update.weights),
            METRICS: MetricRecord(metrics),
            CONFIG: ConfigRecord(
                {"site": update.site, "stage": update.stage, "round": update.round, "seconds": update.seconds}
            ),
        }
    )


def decode_update(content: RecordDict, expected: Weights) -> Update:
    """The inverse of ``update_content``, which takes the arrays out of it: a large model is not in memory twice.

    Args:
        expected: the weights that went out; names, shapes and dtypes must come back.

    Raises:
        MessageError: anything missing, ill-typed, of another shape, or not finite.
    """
    config, metrics, arrays = _config(content), _metrics(content), content.array_records.get(ARRAYS)
    if arrays is None:
        raise MessageError("update", f"must have a record {ARRAYS}")
    found = _decode_pieces((name, arrays.pop(name)) for name in sorted(arrays))
    if found.keys() != expected.keys():
        raise MessageError("update", "must name the model's tensors", value=sorted(found.keys() ^ expected.keys())[0])
    weights: Weights = {}
    for name, like in expected.items():
        array = weights[name] = found[name]
        if array.shape != like.shape or array.dtype != like.dtype:
            rule = f"must be {like.dtype}{list(like.shape)}"
            raise MessageError(f"update {name}", rule, value=f"{array.dtype}{list(array.shape)}")
    examples, loss = _number(metrics, EXAMPLES), _number(metrics, "loss") if "loss" in metrics else None
    if examples <= 0 or examples != int(examples):
        raise MessageError(f"update.{EXAMPLES}", "must be a whole number > 0", value=examples)
    return Update(
        site=_field(config, "site", str),
        stage=_field(config, "stage", str),
        round=_field(config, "round", int),
        weights=weights,
        examples=int(examples),
        loss=loss,
        tuning=_decode_scores(metrics),
        seconds=_field(config, "seconds", float),
    )


def evaluation_content(evaluation: Evaluation) -> RecordDict:
    """An evaluation as the content of a message."""
    metrics: dict[str, MetricRecordValues] = {EXAMPLES: evaluation.scores.cases, **_score_metrics(evaluation.scores)}
    config = ConfigRecord({"site": evaluation.site, "seconds": evaluation.seconds})
    return RecordDict({METRICS: MetricRecord(metrics), CONFIG: config})


def decode_evaluation(content: RecordDict) -> Evaluation:
    """The inverse of ``evaluation_content``; raises ``MessageError``."""
    config, metrics = _config(content), _metrics(content)
    return Evaluation(_field(config, "site", str), _decode_scores(metrics), _field(config, "seconds", float))


def error_reply(message: Message, reason: str, code: int = FAILED_AT_SITE) -> Message:
    """A reply that says why a site did not do as asked."""
    return Message(Error(code, reason), reply_to=message)


def size_of(content: RecordDict) -> int:
    """Bytes of the arrays in the content of a message."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def encode_weights(weights: Weights) -> ArrayRecord:
    """Weights as a record of few pieces: Flower stores, signs and sends every entry of a record by itself."""
    record, piece, filled = ArrayRecord(), Weights(), 0
    for name, array in weights.items():
        if piece and filled + array.nbytes > _PIECE_BYTES:
            record[f"{len(record):06d}"] = _to_piece(piece)
            piece, filled = {}, 0
        piece[name] = np.asarray(array, order="C")
        filled += array.nbytes
    if piece:
        record[f"{len(record):06d}"] = _to_piece(piece)
    return record


def _to_piece(weights: Weights) -> Array:
    data = safetensors.numpy.save(weights)
    return Array("uint8", (len(data),), _PIECE, data)


def decode_weights(arrays: ArrayRecord) -> Weights:
    """The inverse of ``encode_weights``; raises ``MessageError`` for what is not finite arrays of floats."""
    return _decode_pieces(arrays.items())


def _decode_pieces(pieces: Iterable[tuple[str, Array]]) -> Weights:
    weights: Weights = {}
    for place, piece in pieces:
        for name, array in _load_piece(place, piece).items():
            if name in weights:
                raise MessageError(f"weights {name}", "must be named once")
            weights[name] = _finite(name, array)
    return weights


def _finite(name: str, array: NDArray[np.generic]) -> NDArray[np.generic]:
    if not np.issubdtype(array.dtype, np.floating):
        raise MessageError(f"weights {name}", "must be floating point", value=str(array.dtype))
    if not np.isfinite(array).all():
        raise MessageError(f"weights {name}", "must be finite")
    return array


Form = tuple[str, tuple[int, ...]]  # dtype and shape of a tensor


def piece_forms(piece: Array) -> dict[str, Form]:
    """Names and forms of the tensors in one piece of weights, or of a masked vector.

    Raises:
        MessageError: what is not tensors, of floats that are finite, or holds anything besides.
    """
    found = _load_piece("piece", piece)
    if any(np.issubdtype(array.dtype, np.floating) for array in found.values()):
        for name, array in found.items():
            _finite(name, array)
    if piece != _to_piece(found):
        raise MessageError("weights", "must be tensors, as encoded here, and nothing besides")
    return {name: (str(array.dtype), array.shape) for name, array in found.items()}


def check_reply(content: RecordDict, task: Task, site: str) -> str:
    """The kind of a reply, which says what its task asks for, in our own words, and nothing besides.

    Every reply is decoded and encoded again: what does not come out as it went in has no place in a message.

    Args:
        content: without what its arrays hold; these are checked by ``piece_forms``.

    Raises:
        MessageError: it is something else, or of another site, stage or round.
    """
    arrays = content.array_records.get(ARRAYS)
    if arrays is not None:
        if list(arrays) != [f"{place:06d}" for place in range(len(arrays))]:
            raise MessageError("reply: arrays", "must be pieces in order")
        content = RecordDict({**content, ARRAYS: ArrayRecord()})
    if isinstance(task.study.secure_aggregation, SecAgg):
        kind, again, said = _check_step(content, task)
    elif task.stage == SURVEY:
        survey = decode_survey(content, task.study)
        kind, again, said = SURVEY, survey_content(survey), (survey.site, SURVEY, task.round)
    elif task.stage == EVALUATE:
        evaluation = decode_evaluation(content)
        kind, again, said = "evaluation", evaluation_content(evaluation), (evaluation.site, EVALUATE, task.round)
    else:
        update = decode_update(content, {})
        kind, again, said = "update", update_content(update), (update.site, update.stage, update.round)
    if dict(again) != dict(content):
        raise MessageError("reply", "must hold its records and fields, and nothing besides")
    if said != (site, task.stage, task.round):
        raise MessageError("reply", "must be of this site, and of the stage and round of its task", value=said)
    return kind


def _check_step(content: RecordDict, task: Task) -> tuple[str, RecordDict, tuple[str, str, int]]:
    """The kind of an answer to a step of a sum, the same encoded again, and what it says of itself."""
    if isinstance(task.step, Mask):
        site = _field(_config(content), "site", str)
        again = RecordDict({ARRAYS: ArrayRecord(), CONFIG: ConfigRecord({"site": site})})
        return "masked", again, (site, task.stage, task.round)
    if isinstance(task.step, Advertise):
        advert = decode_step_reply(Advert, content)
        return "advert", step_reply_content(advert), (advert.site, task.stage, task.round)
    if isinstance(task.step, Share):
        sealed = decode_step_reply(Sealed, content)
        return "sealed", step_reply_content(sealed), (sealed.site, task.stage, task.round)
    opened = decode_step_reply(Opened, content)
    return "opened", step_reply_content(opened), (opened.site, task.stage, task.round)


def masked_forms(words: int, sums: int) -> dict[str, Form]:
    """Names and forms of the tensors of a masked vector.

    Args:
        words, sums: their numbers.
    """
    size = _PIECE_BYTES // 4
    forms: dict[str, Form] = {
        f"{start:012d}": ("uint32", (min(size, words - start),)) for start in range(0, words, size)
    }
    return forms | {_SUMS: ("uint64", (sums,))}


def _load_piece(place: str, piece: Array) -> Weights:
    if piece.stype != _PIECE:
        raise MessageError(f"weights {place}", f"must be {_PIECE}", value=piece.stype)
    try:
        return safetensors.numpy.load(piece.data)  # checks every length, and runs nothing
    except Exception as error:  # of the parser, or a type that NumPy does not have
        reason = str(error).split("\n")[0]
        raise MessageError(f"weights {place}", f"must be readable {_PIECE}", value=reason) from None


def _score_metrics(scores: Scores) -> dict[str, MetricRecordValues]:
    return {
        "positives": scores.positives.tolist(),
        "negatives": scores.negatives.tolist(),
        "log-loss": scores.log_loss,
        "squares": scores.squares,
    }


def _decode_scores(metrics: MetricRecord) -> Scores:
    counts = {}
    for name in ("positives", "negatives"):
        values = metrics.get(name)
        found = np.array(values if isinstance(values, list) else None)
        # The bound keeps sums over all bins and sites far from overflow.
        if found.dtype != np.int64 or not found.size or found.max() >= 2**31 or found.min() <= -(2**31):
            raise MessageError(f"reply.{name}", "must be a list of counts", value=type(values).__name__)
        counts[name] = found
    scores = Scores(counts["positives"], counts["negatives"], _number(metrics, "log-loss"), _number(metrics, "squares"))
    scores.check("reply")
    return scores


def _config(content: RecordDict) -> ConfigRecord:
    config = content.config_records.get(CONFIG)
    if config is None:
        raise MessageError("reply", f"must have a record {CONFIG}")
    return config


def _metrics(content: RecordDict) -> MetricRecord:
    metrics = content.metric_records.get(METRICS)
    if metrics is None:
        raise MessageError("reply", f"must have a record {METRICS}")
    return metrics


def _number(metrics: MetricRecord, name: str) -> float:
    value = metrics.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise MessageError(f"reply.{name}", "must be a finite number", value=value)
    return float(value)


def _field(config: ConfigRecord, name: str, kind: type[T]) -> T:
    value = config.get(name)
    if type(value) is not kind:
        raise MessageError(f"record {CONFIG}: {name}", f"must be of type {kind.__name__}", value=value)
    if kind is float and not math.isfinite(float(value)):
        raise MessageError(f"record {CONFIG}: {name}", "must be finite", value=value)
    return value
