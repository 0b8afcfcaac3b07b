"""Do the steps of a sum and their answers arrive as they were sent, and is everything else refused?"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from shared import messages
from shared.errors import MessageError
from shared.messages import (
    ARRAYS,
    CONFIG,
    STEP,
    Masked,
    Task,
    decode_masked,
    decode_step_reply,
    decode_task,
    encode_weights,
    masked_content,
    step_reply_content,
    task_content,
    with_step,
)
from shared.secure_aggregation.masking import Vector
from shared.secure_aggregation.steps import Advert, Advertise, Mask, Opened, Sealed, Share, Step, Unmask
from tests.sums import summed_study

ADVERT = Advert("north", "ab" * 32, "cd" * 32, "ef" * 32)
STEPS: list[Step] = [
    Advertise("one"),
    Share("one", (ADVERT, Advert("south", "00", "01", "02", "pem", "sig")), "ab", 17),
    Mask("one", {"south": "ab"}),
    Unmask("one", ("north", "south")),
]
REPLIES = [ADVERT, Sealed("north", {"south": "ab"}), Opened("north", {"north": "ab"}, {"south": "cd"})]
TASK = Task(summed_study(), "survey", 0, 0, "", None, {})


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.kind)
def test_step_arrives_as_it_was_sent(step: Step) -> None:
    content = task_content(TASK)
    found = decode_task(with_step(content, step))
    assert found.step == step
    assert found.study == TASK.study
    assert decode_task(content).step is None  # the content itself is as it was


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: type(reply).__name__)
def test_reply_arrives_as_it_was_sent_and_as_no_other(reply: Any) -> None:
    content = step_reply_content(reply)
    for other in REPLIES:
        if other is reply:
            assert decode_step_reply(type(reply), content) == reply
        else:
            with pytest.raises(MessageError):
                decode_step_reply(type(other), content)


@given(st.integers(0, 70), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_masked_vector_arrives_bit_for_bit(words: int, sums: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    vector = Vector(random.integers(0, 2**32, words, dtype=np.uint32), random.integers(0, 2**64, sums, dtype=np.uint64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "_PIECE_BYTES", 64)  # a model of many pieces
        found = decode_masked(masked_content(Masked("north", vector)), Vector.zeros(words, sums))
    assert found.site == "north"
    assert found.vector.words.tobytes() == vector.words.tobytes()
    assert found.vector.sums.tobytes() == vector.sums.tobytes()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"sums": np.zeros(2, np.uint64)}, "words must be 3 numbers of uint32, got 0"),
        ({"0": np.zeros(3, np.uint32)}, "sums must be 2 numbers of uint64, got 0"),
        ({"0": np.zeros(4, np.uint32), "sums": np.zeros(2, np.uint64)}, "words must be 3 numbers of uint32, got 4"),
        ({"0": np.zeros(3, np.int32), "sums": np.zeros(2, np.uint64)}, "words must be 3 numbers of uint32"),
        ({"0": np.zeros((1, 3), np.uint32), "sums": np.zeros(2, np.uint64)}, "words must be 3 numbers of uint32"),
        ({"0": np.zeros(3, np.uint32), "sums": np.zeros(2, np.float64)}, "sums must be 2 numbers of uint64"),
    ],
)
def test_vector_of_another_length_or_type_is_refused(arrays: Any, message: str) -> None:
    content = RecordDict({ARRAYS: encode_weights(arrays), CONFIG: ConfigRecord({"site": "north"})})
    with pytest.raises(MessageError, match=f"masked vector: {message}"):
        decode_masked(content, Vector.zeros(3, 2))


@pytest.mark.parametrize(
    "step",
    [
        "",
        "[]",
        "{}",
        '{"step":{}}',
        '{"step":{"kind":"unknown"}}',
        '{"step":{"kind":"advertise"}}',
        '{"step":{"kind":"advertise","session":1}}',
        '{"step":{"kind":"unmask","session":"one","survivors":"north"}}',
        '{"step":{"kind":"share","session":"one","roster":[{"site":"north"}]}}',
        '{"step":{"kind":"mask","session":"one","shares":{"north":1}}}',
        '{"step":{"kind":"share","session":"one","roster":[],"start":"","examples":-1}}',
    ],
)
def test_step_that_is_none_is_refused(step: str) -> None:
    content = RecordDict({**task_content(TASK), STEP: ConfigRecord({"step": step})})
    with pytest.raises(MessageError):
        decode_task(content)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists, max_leaves=5), st.data())
def test_reply_is_read_or_refused_whatever_arrives(noise: Any, data: st.DataObject) -> None:
    reply = data.draw(st.sampled_from(REPLIES))
    fields = json.loads(str(step_reply_content(reply).config_records[CONFIG]["reply"]))
    fields[data.draw(st.sampled_from([*fields, "more"]))] = noise
    content = RecordDict({CONFIG: ConfigRecord({"reply": json.dumps(fields)})})
    with contextlib.suppress(MessageError):
        decode_step_reply(type(reply), content)
