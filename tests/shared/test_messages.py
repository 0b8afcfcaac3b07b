"""Does what crosses a site's border arrive as it was sent, and is everything else refused?"""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from shared import messages
from shared.errors import MessageError
from shared.messages import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    METRICS,
    Evaluation,
    SurveyReply,
    Task,
    Update,
    decode_evaluation,
    decode_survey,
    decode_task,
    decode_update,
    decode_weights,
    encode_weights,
    evaluation_content,
    survey_content,
    task_content,
    update_content,
)
from shared.metrics import BINS, Scores, empty_scores, score
from shared.statistics import Statistics, Survey
from shared.weights import Weights
from tests.factories import make_study

STUDY = make_study()
WEIGHTS: Weights = {
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "layer.bias": np.array([1e-30, -0.0], dtype=np.float64),
    "scale": np.array(2.5, dtype=np.float32),
    "none": np.zeros((0, 3), dtype=np.float32),
}
SCORES = score(np.array([-1.0, 2.0, 0.5]), np.array([0.0, 1.0, 1.0]))
TASK = Task(STUDY, "finetune", 2, 5, "", Statistics((1.0, 2.0), (0.5, 3.0), 0.25), WEIGHTS)
UPDATE = Update("north", "finetune", 2, WEIGHTS, 17, 0.625, SCORES, 1.5)
EVALUATION = Evaluation("north", SCORES, 0.5)
SURVEY = SurveyReply("north", Survey(patients=3, labelled=2, counts=(1, 2), sums=(0.5, 1.5), squares=(0.25, 1.25)))


def same_weights(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes()
        for name in a
    )


def same_scores(a: Scores, b: Scores) -> bool:
    return (
        (a.positives == b.positives).all() and (a.negatives == b.negatives).all() and a.log_loss == b.log_loss
    ) and a.squares == b.squares


@pytest.mark.parametrize("task", [TASK, Task(STUDY, "survey", 0, 0, "", None, {}), replace(TASK, split="held_out")])
def test_a_task_arrives_as_it_was_sent(task: Task) -> None:
    back = decode_task(task_content(task))
    assert replace(back, weights={}) == replace(task, weights={})
    assert same_weights(back.weights, task.weights)


def test_a_survey_arrives_as_it_was_sent() -> None:
    assert decode_survey(survey_content(SURVEY), STUDY) == SURVEY


@pytest.mark.parametrize("scores", [SCORES, empty_scores()])
def test_an_update_arrives_as_it_was_sent(scores: Scores) -> None:
    update = replace(UPDATE, tuning=scores)
    back = decode_update(update_content(update), WEIGHTS)
    assert same_weights(back.weights, WEIGHTS)
    assert same_scores(back.tuning, scores)
    assert (back.site, back.examples, back.loss, back.seconds) == ("north", 17, 0.625, 1.5)


def test_an_evaluation_arrives_as_it_was_sent() -> None:
    back = decode_evaluation(evaluation_content(EVALUATION))
    assert same_scores(back.scores, SCORES)
    assert (back.site, back.seconds) == ("north", 0.5)


arrays = st.builds(
    lambda shape, kind, seed: np.random.default_rng(seed).normal(size=shape).astype(kind),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.integers(0, 99),
)


@given(st.dictionaries(st.text(min_size=1, max_size=9), arrays, max_size=4))
def test_weights_of_any_shape_arrive_bit_for_bit(weights: Weights) -> None:
    assert same_weights(decode_weights(encode_weights(weights)), weights)


def test_weights_travel_in_few_pieces_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_PIECE_BYTES", 1000)
    weights: Weights = {f"layer.{i}": np.full(i, i, np.float32) for i in range(100)}
    record = encode_weights(weights)
    total = sum(array.nbytes for array in weights.values())
    assert total / 1000 < len(record) < 2 * total / 1000 + 1
    assert same_weights(decode_weights(record), weights)


def test_weights_that_are_a_view_arrive_whole() -> None:
    view = np.arange(12.0).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(decode_weights(encode_weights({"w": view}))["w"], view)


# What is refused


def with_piece(piece: Array) -> RecordDict:
    content = update_content(UPDATE)
    content.array_records[ARRAYS]["000000"] = piece
    return content


def piece_of(data: bytes, stype: str = "safetensors") -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype=stype, data=data)


def with_weight(array: np.ndarray) -> Array:
    return encode_weights({**WEIGHTS, "layer.weight": array})["000000"]


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, ("import builtins; builtins.fedretina_was_here = True",)


def saved(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


GOOD = with_weight(WEIGHTS["layer.weight"]).data
UNREADABLE = "weights 000000 must be readable safetensors"


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (with_weight(np.full((2, 3), np.nan, np.float32)), "weights layer.weight must be finite"),
        (with_weight(np.full((2, 3), np.inf, np.float32)), "weights layer.weight must be finite"),
        (with_weight(np.zeros((3, 2), np.float32)), "update layer.weight must be float32[2, 3], got 'float32[3, 2]'"),
        (with_weight(np.zeros((2, 3), np.float64)), "update layer.weight must be float32[2, 3], got 'float64[2, 3]'"),
        (with_weight(np.zeros((2, 3), np.int64)), "weights layer.weight must be floating point, got 'int64'"),
        (with_weight(np.zeros((2, 3), np.bool_)), "weights layer.weight must be floating point"),
        (piece_of(b""), UNREADABLE),
        (piece_of(b"not an array"), UNREADABLE),
        (piece_of(GOOD[:-4]), UNREADABLE),
        (piece_of(GOOD + b"more"), UNREADABLE),
        (piece_of((2**62).to_bytes(8, "little") + GOOD[8:]), UNREADABLE),
        (piece_of(GOOD.replace(b'"F32"', b'"F99"')), UNREADABLE),
        (piece_of(GOOD.replace(b"[2,3]", b"[9,9]")), UNREADABLE),
        (piece_of(saved(np.zeros((2, 3), np.float32)), "numpy.ndarray"), "weights 000000 must be safetensors, got"),
        (piece_of(saved(np.zeros((2, 3), np.float32))), UNREADABLE),
    ],
)
def test_what_is_no_finite_array_of_the_model_is_refused(piece: Array, message: str) -> None:
    with pytest.raises(MessageError) as caught:
        decode_update(with_piece(piece), WEIGHTS)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_comes_twice_is_refused() -> None:
    content = update_content(UPDATE)
    content.array_records[ARRAYS]["000001"] = encode_weights({"scale": WEIGHTS["scale"]})["000000"]
    with pytest.raises(MessageError, match="weights scale must be named once"):
        decode_update(content, WEIGHTS)


@given(st.binary(max_size=60), st.integers(0, len(GOOD) - 1))
def test_damaged_pieces_are_read_or_refused(noise: bytes, place: int) -> None:
    for data in (noise, GOOD[:place] + noise + GOOD[place:], GOOD[:place] + noise + GOOD[place + len(noise) :]):
        with contextlib.suppress(MessageError):
            decode_update(with_piece(piece_of(data)), WEIGHTS)


def test_an_array_that_would_run_code_is_refused_and_does_not_run() -> None:
    import builtins

    for data in (saved(np.array([Bomb()], dtype=object), allow_pickle=True), pickle.dumps(Bomb())):
        for stype in ("safetensors", "numpy.ndarray"):
            with pytest.raises(MessageError, match="weights 000000 must be"):
                decode_update(with_piece(piece_of(data, stype)), WEIGHTS)
    assert not hasattr(builtins, "fedretina_was_here")


def renamed(weights: Weights) -> Weights:
    return {"layer.wait" if name == "layer.weight" else name: array for name, array in weights.items()}


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ({k: v for k, v in WEIGHTS.items() if k != "scale"}, "scale"),
        (WEIGHTS | {"extra": np.zeros(1)}, "extra"),
        (renamed(WEIGHTS), "layer.wait"),
        ({}, "layer.bias"),
    ],
)
def test_other_tensors_than_the_models_are_refused(weights: Weights, name: str) -> None:
    with pytest.raises(MessageError, match=f"update must name the model's tensors, got '{name}'"):
        decode_update(update_content(replace(UPDATE, weights=weights)), WEIGHTS)


METRIC_FAULTS: list[tuple[str, Any, str]] = [
    ("loss", float("nan"), "reply.loss must be a finite number"),
    ("loss", float("inf"), "reply.loss must be a finite number"),
    ("loss", [0.5], "reply.loss must be a finite number"),
    ("positives", [1] * (BINS - 1), f"reply.positives must be {BINS} counts"),
    ("negatives", [-1] + [0] * (BINS - 1), f"reply.negatives must be {BINS} counts"),
    ("negatives", [0.5] * BINS, "reply.negatives must be a list of counts"),
    ("negatives", 3, "reply.negatives must be a list of counts"),
    ("positives", [2**70] + [0] * (BINS - 1), "reply.positives"),
    ("positives", [2**62] * BINS, "reply.positives"),
    ("log-loss", -1.0, "reply.log_loss must be finite and >= 0"),
    ("squares", float("nan"), "reply.squares must be a finite number"),
]


@pytest.mark.parametrize(("name", "value", "message"), METRIC_FAULTS)
def test_metrics_that_cannot_be_are_refused(name: str, value: Any, message: str) -> None:
    content = update_content(UPDATE)
    content.metric_records[METRICS][name] = value
    with pytest.raises(MessageError) as caught:
        decode_update(content, WEIGHTS)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("examples", [0, -3, 1.5, float("nan")])
def test_an_update_of_no_whole_number_of_examples_is_refused(examples: float) -> None:
    content = update_content(UPDATE)
    content.metric_records[METRICS][EXAMPLES] = examples
    with pytest.raises(MessageError, match="num-examples must be a"):
        decode_update(content, WEIGHTS)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), "1", 1])
def test_a_duration_that_is_none_is_refused(seconds: Any) -> None:
    for content, decode in (
        (update_content(UPDATE), lambda c: decode_update(c, WEIGHTS)),
        (evaluation_content(EVALUATION), decode_evaluation),
    ):
        content.config_records[CONFIG]["seconds"] = seconds
        with pytest.raises(MessageError, match="seconds must be"):
            decode(content)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("protocol", 2, "task.protocol must be 1, got 2. Install the same version of fedretina"),
        ("protocol", "1", "record config: protocol must be of type int, got '1'"),
        ("round", 1.0, "record config: round must be of type int, got 1.0"),
        ("round", True, "record config: round must be of type int, got True"),
        ("stage", 3, "record config: stage must be of type str"),
        ("stage", "finetunes", "task.stage must be one of survey, pretrain, finetune, evaluate, got 'finetunes'"),
        ("round", 6, "task.round must be"),
        ("round", -1, "task.round must be"),
        ("study", "{}x", "task: Study must be valid JSON"),
        ("study", '{"sead":1}', "task: sead is not a setting. Did you mean seed?"),
        ("study", '{"seed":-1}', "task: seed must be >= 0, got -1"),
        ("statistics", '{"deviation":[0.0]}', "task: deviation must be > 0.0, got 0.0"),
    ],
)
def test_a_task_that_is_none_is_refused(name: str, value: Any, message: str) -> None:
    content = task_content(TASK)
    content.config_records[CONFIG][name] = value
    with pytest.raises(MessageError) as caught:
        decode_task(content)
    assert str(caught.value).startswith(message)


def test_statistics_of_another_feature_list_are_refused() -> None:
    content = task_content(replace(TASK, statistics=Statistics((1.0,), (1.0,), 0.5)))
    with pytest.raises(MessageError, match="task: statistics"):
        decode_task(content)


@pytest.mark.parametrize("survey", ["", "[]", '{"patients":-1}', '{"patients":1.5}', '{"names":["Jane Doe"]}'])
def test_a_survey_that_is_none_is_refused(survey: str) -> None:
    content = survey_content(SURVEY)
    content.config_records[CONFIG]["survey"] = survey
    with pytest.raises(MessageError, match=r"^survey: "):
        decode_survey(content, STUDY)


DECODERS: list[tuple[RecordDict, Callable[[RecordDict], object]]] = [
    (task_content(TASK), decode_task),
    (survey_content(SURVEY), lambda content: decode_survey(content, STUDY)),
    (update_content(UPDATE), lambda content: decode_update(content, WEIGHTS)),
    (evaluation_content(EVALUATION), decode_evaluation),
]
config_values = (
    st.integers(-(2**62), 2**62) | st.floats() | st.text(max_size=9) | st.booleans() | st.binary(max_size=9)
) | st.lists(st.integers(-9, 9), max_size=4)
metric_values = st.integers(-(2**62), 2**62) | st.floats() | st.lists(st.integers(-5, 5), max_size=5)
records = (
    st.builds(ConfigRecord, st.dictionaries(st.text(max_size=4), config_values, max_size=2))
    | st.builds(MetricRecord, st.dictionaries(st.text(max_size=4), metric_values, max_size=2))
    | st.just(ArrayRecord({"layer.weight": Array(np.zeros((2, 3), np.float32))}))
)


def copy_of(content: RecordDict) -> RecordDict:
    return RecordDict({name: pickle.loads(pickle.dumps(record)) for name, record in content.items()})


@given(st.sampled_from(range(4)), st.data())
def test_a_decoder_reads_or_refuses_whatever_arrives(which: int, data: st.DataObject) -> None:
    """Anything but MessageError would end the coordinator's run, or name a patient in a reply."""
    template, decode = DECODERS[which]
    content = copy_of(template)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(sorted(content)))
        deed = data.draw(st.sampled_from(["drop record", "replace record", "drop field", "replace field", "add field"]))
        record: Any = content[name]
        if deed == "drop record":
            del content[name]
        elif deed == "replace record":
            content[name] = data.draw(records)
        elif not isinstance(record, ArrayRecord) and len(record):
            key = data.draw(st.sampled_from(sorted(record))) if deed != "add field" else data.draw(st.text(max_size=5))
            if deed == "drop field":
                del record[key]
            else:
                record[key] = data.draw(metric_values if isinstance(record, MetricRecord) else config_values)
        if not content:
            break
    with contextlib.suppress(MessageError):
        decode(content)
