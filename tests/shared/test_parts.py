"""Does a message come out of its parts as it went in, and nothing out of parts that somebody made up?"""

from __future__ import annotations

import hashlib
import json
import pickle
import resource
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import MessageError
from shared.messages import ARRAYS, decode_weights, encode_weights
from shared.parts import assemble
from shared.weights import Weights
from simulation.grid import LocalGrid

LIMIT_BYTES = 2**24
WEIGHTS: Weights = {"w": np.random.default_rng(0).normal(size=(900, 1000)), "b": np.zeros(3, dtype=np.float32)}


@pytest.fixture(autouse=True)
def run_of_flower() -> None:
    """Messages take their sender from the run that is on."""
    LocalGrid([])


def content() -> RecordDict:
    made = RecordDict({ARRAYS: encode_weights(WEIGHTS), "config": ConfigRecord({"a": "b"})})
    made["metrics"] = MetricRecord({"m": [1]})
    return made


def take_apart(message: Message) -> tuple[Message, dict[str, bytes]]:
    message.metadata.__dict__["_message_id"] = message.object_id
    parts = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    return remove_content_from_message(message), parts


def part(kind: str, children: list[str], body: bytes) -> tuple[str, bytes]:
    """A part as Flower writes it, with its name."""
    made = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(made).hexdigest(), made


def header(root: str) -> Message:
    message = Message(RecordDict(), 2, "train")
    message.metadata.__dict__["_message_id"] = root
    return message


def test_assembling_is_the_inverse_of_taking_apart() -> None:
    bare, parts = take_apart(Message(content(), 2, "train"))
    found = assemble(bare, parts, LIMIT_BYTES)
    assert found.metadata == bare.metadata
    assert found.content.config_records == content().config_records
    assert found.content.metric_records == content().metric_records
    weights = decode_weights(found.content.array_records[ARRAYS])
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(weights[name], array)


def test_an_error_is_assembled_too() -> None:
    asked = Message(RecordDict(), 2, "train")
    asked.metadata.__dict__["_message_id"] = asked.object_id
    bare, parts = take_apart(Message(Error(1000, "no"), reply_to=asked))
    assert assemble(bare, parts, LIMIT_BYTES).error.reason == "no"


def test_parts_are_as_flower_writes_them() -> None:
    """The parts that the tests below make up are refused for what they are, not for how they are written."""
    for name, written in take_apart(Message(content(), 2, "train"))[1].items():
        kind, children, _ = written.split(b"\0", 1)[0].decode().split(" ")
        body = written.split(b"\0", 1)[1]
        assert part(kind, children.split(",") if children else [], body) == (name, written)


def test_who_sent_it_is_read_from_the_header_alone() -> None:
    """Whoever hands a message in is known; what stands in its parts is whatever they wrote there."""
    bare, _ = take_apart(Message(content(), 2, "train"))
    forged, parts = take_apart(Message(content(), 3, "evaluate"))
    bare.metadata.__dict__["_message_id"] = forged.metadata.message_id
    found = assemble(bare, parts, LIMIT_BYTES)
    assert (found.metadata.dst_node_id, found.metadata.message_type) == (2, "train")


def test_one_piece_named_a_million_times_takes_no_memory() -> None:
    piece, written = part("ArrayChunk", [], bytes(2**20))
    body = {"dtype": "float32", "shape": [2**38], "stype": "numpy.ndarray", "arraychunk_ids": [0] * 2**20}
    array, described = part("Array", [piece], json.dumps(body).encode())
    parts = {piece: written, array: described}
    tracemalloc.start()
    try:
        with pytest.raises(MessageError, match=f"must take at most {LIMIT_BYTES} bytes, got 10995"):
            assemble(header(array), parts, LIMIT_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "missing", ["Message", "RecordDict", "ArrayRecord", "ConfigRecord", "MetricRecord", "Array", "ArrayChunk"]
)
def test_a_message_without_one_of_its_parts_is_none(missing: str) -> None:
    bare, parts = take_apart(Message(content(), 2, "train"))
    kept = {name: written for name, written in parts.items() if not written.startswith(missing.encode() + b" ")}
    assert len(kept) < len(parts)
    with pytest.raises(MessageError, match="must be put together from its parts"):
        assemble(bare, kept, LIMIT_BYTES)


def test_a_chain_of_parts_without_end_is_none() -> None:
    name, parts = "", {}
    for _ in range(5000):
        name, written = part("RecordDict", [name] if name else [], json.dumps({"x": name} if name else {}).encode())
        parts[name] = written
    with pytest.raises(MessageError, match="must be put together from its parts, got 'RecursionError'"):
        assemble(header(name), parts, LIMIT_BYTES)


def test_a_circle_of_parts_is_none() -> None:
    """No SHA-256 names a circle; whoever does not check them could hand one in."""
    for circle in (["a"], ["b"], ["a", "b"]):
        parts = {"a": part("RecordDict", circle, b"{}")[1], "b": part("RecordDict", ["a"], b"{}")[1]}
        with pytest.raises(MessageError):
            assemble(header("a"), parts, LIMIT_BYTES)


KINDS = sorted(inflatable_class_registry)
BODIES = st.one_of(
    st.binary(max_size=60),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda ids, shape: json.dumps(
            {"dtype": "float32", "shape": shape, "stype": "numpy.ndarray", "arraychunk_ids": ids}
        ).encode(),
        st.lists(st.integers(-3, 3), max_size=4),
        st.lists(st.integers(), max_size=3),
    ),
)


@given(data=st.data())
def test_parts_that_somebody_made_up_are_a_message_or_refused(data: st.DataObject) -> None:
    names: list[str] = []
    parts: dict[str, bytes] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        children = data.draw(st.lists(st.sampled_from(names), max_size=3)) if names else []
        body = data.draw(BODIES | st.just(json.dumps({f"{i}": name for i, name in enumerate(children)}).encode()))
        name, written = part(data.draw(st.sampled_from(KINDS)), children, body)
        names.append(name)
        parts[name] = written
    with suppress(MessageError):
        assert isinstance(assemble(header(names[-1]), parts, LIMIT_BYTES), Message)


@given(
    damage=st.lists(st.tuples(st.integers(0, 10), st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_damage_never_raises_anything_else(damage: list[tuple[int, int, int]]) -> None:
    bare, parts = take_apart(Message(content(), 2, "train"))
    for which, where, value in damage:
        name = sorted(parts)[which % len(parts)]
        written = bytearray(parts[name])
        written[where % len(written)] = value
        parts[name] = bytes(written)
    try:
        found = assemble(bare, parts, LIMIT_BYTES)
    except MessageError:
        return
    if found.has_content() and ARRAYS in found.content.array_records:
        with suppress(MessageError):
            decode_weights(found.content.array_records[ARRAYS])


# What is in an array


def tensors(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    """A file of tensors whose header says what it likes."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: list[int], end: int, start: int = 0, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HOSTILE = {
    "a terabyte": tensors({"w": tensor([2**38], 8)}),
    "a terabyte somewhere": tensors({"w": tensor([2**38], 2**40)}),
    "more than can be counted": tensors({"w": tensor([2**40, 2**40], 8)}),
    "less than nothing": tensors({"w": tensor([-1], 8)}),
    "bytes of two": tensors({"w": tensor([2], 8), "v": tensor([2], 8)}),
    "bytes of nobody": tensors({"w": tensor([1], 4)}),
    "the other way round": tensors({"w": tensor([2], 0, 8)}),
    "a long header": tensors({"w": tensor([2], 8)}, length=2**62),
    "a header of 4 GB": tensors({"w": tensor([2], 8)}, length=2**32),
    "no header": tensors("x" * 100),
    "a deep header": tensors("[" * 100_000),
    "whole numbers": tensors({"w": tensor([1], 8, dtype="I64")}),
    "no numbers": tensors({"w": tensor([8], 8, dtype="BOOL")}),
    "an unknown type": tensors({"w": tensor([8], 8, dtype="O")}),
    "infinity": tensors({"w": tensor([2], 8)}, b"\x00\x00\x80\x7f" * 2),
    "nothing": b"",
    "a pickle": pickle.dumps([print]),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_array_that_is_none_is_refused_and_takes_no_memory(what: str) -> None:
    (like,) = encode_weights({"w": np.zeros(2, dtype=np.float32)}).values()
    record = ArrayRecord({"0": Array(like.dtype, like.shape, like.stype, HOSTILE[what])})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MessageError, match=r"weights (w|0) must be"):
        decode_weights(record)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15  # KiB


@pytest.mark.parametrize("kind", ["pickle", "numpy.ndarray", "torch", ""])
def test_an_array_of_another_kind_is_refused(kind: str) -> None:
    record = ArrayRecord({"0": Array("float32", (1,), kind, pickle.dumps(print))})
    with pytest.raises(MessageError, match="weights 0 must be"):
        decode_weights(record)
