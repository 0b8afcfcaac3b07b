"""Is a message on disk the one that was written, whole, or none?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

from client.parcels import Parcel
from shared.errors import CheckpointError, MessageError
from shared.messages import ARRAYS, decode_weights, encode_weights, error_reply
from shared.weights import Weights
from simulation.grid import LocalGrid

SMALL: Weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(1.5, dtype=np.float64)}
LARGE: Weights = {"w": np.random.default_rng(0).normal(size=(1500, 1000)).astype(np.float32)}  # 6 MB: several chunks


@pytest.fixture(autouse=True)
def run_of_flower() -> None:
    """Messages take their sender from the run that is on."""
    LocalGrid([])


def make_message(weights: Weights = SMALL, text: str = "x") -> Message:
    content = RecordDict({ARRAYS: encode_weights(weights), "config": ConfigRecord({"text": text, "numbers": [1, 2]})})
    return Message(content, 7, "train")


def stored(folder: Path, message: Message | None = None) -> Parcel:
    parcel = Parcel(folder / "inbox")
    parcel.store(message or make_message())
    return parcel


def parts(parcel: Parcel) -> list[Path]:
    return [parcel.folder / part.object_id for part in iterate_object_tree(parcel.tree)]


@pytest.mark.parametrize("weights", [SMALL, LARGE, {}, SMALL | LARGE])
def test_loading_is_the_inverse_of_storing(tmp_path: Path, weights: Weights) -> None:
    loaded = stored(tmp_path, make_message(weights)).load()
    found = decode_weights(loaded.content.array_records[ARRAYS])
    assert found.keys() == weights.keys()
    for name, array in weights.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert loaded.content.config_records["config"] == ConfigRecord({"text": "x", "numbers": [1, 2]})
    assert (loaded.metadata.dst_node_id, loaded.metadata.message_type) == (7, "train")


def test_a_large_array_is_of_several_parts(tmp_path: Path) -> None:
    parcel = stored(tmp_path, make_message(LARGE))
    assert parcel.size_bytes > 5 * 2**20
    assert sum(file.stat().st_size > 10_000 for file in parts(parcel)) > 1


def test_what_is_known_without_the_content_is_of_the_message(tmp_path: Path) -> None:
    message = make_message()
    parcel = stored(tmp_path, message)
    assert parcel.message_id == message.object_id == parcel.load().metadata.message_id
    assert parcel.run_id == message.metadata.run_id
    assert not parcel.header().content
    reply = Message(RecordDict(), reply_to=parcel.header())
    assert reply.metadata.reply_to_message_id == message.object_id


def test_an_error_is_a_message_too(tmp_path: Path) -> None:
    inbox, outbox = stored(tmp_path), Parcel(tmp_path / "outbox")
    outbox.store(error_reply(inbox.header(), "why", 1001))
    reply = outbox.load()
    assert reply.error == Error(1001, "why")
    assert reply.metadata.reply_to_message_id == inbox.message_id


def test_there_is_one_message_or_none(tmp_path: Path) -> None:
    parcel = Parcel(tmp_path / "inbox")
    assert not parcel.is_there
    parcel.clear()
    parcel.store(make_message(SMALL | LARGE, "first"))
    parcel.store(make_message(SMALL, "second"))
    assert parcel.load().content.config_records["config"]["text"] == "second"
    assert len(list(parcel.folder.iterdir())) == len(set(parts(parcel))) + 2
    parcel.clear()
    assert not parcel.is_there
    assert list(tmp_path.iterdir()) == []


def test_a_removal_that_was_interrupted_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parcel = stored(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        parcel.clear()
    assert not parcel.is_there
    parcel.store(make_message(text="next"))
    parcel.clear()
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_can_look_into_it(tmp_path: Path) -> None:
    assert stored(tmp_path).folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_part_is_found(tmp_path: Path, damage: str) -> None:
    for number in range(len(set(parts(stored(tmp_path))))):
        parcel = stored(tmp_path)
        file = sorted(set(parts(parcel)))[number]
        content = file.read_bytes()
        if damage == "remove":
            file.unlink()
        else:
            file.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if damage == "flip" else b""))
        with pytest.raises(CheckpointError, match="must be undamaged"):
            parcel.load()


@pytest.mark.parametrize("name", ["message.pb", "tree.pb"])
@pytest.mark.parametrize("content", [b"\xff\xff\xff", None])
def test_a_damaged_frame_is_found(tmp_path: Path, name: str, content: bytes | None) -> None:
    parcel = stored(tmp_path)
    if content is None:
        (parcel.folder / name).unlink()
    else:
        (parcel.folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} must be undamaged"):
        parcel.load()


@pytest.mark.parametrize(
    "name", ["../../escaped", "/etc/passwd", "message.pb", "", "a" * 63, "a" * 63 + "/", "..", "a" * 65]
)
def test_names_of_parts_cannot_leave_the_place(tmp_path: Path, name: str) -> None:
    parcel = stored(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    tree = ObjectTree(object_id=parcel.tree.object_id, children=[ObjectTree(object_id=name)])
    with pytest.raises(MessageError, match="must name its parts by SHA-256"):
        parcel.draft(parcel.message, tree)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(CheckpointError):
        parcel.read(name)


def test_a_part_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    parcel = stored(tmp_path)
    draft = Parcel(tmp_path / "other").draft(parcel.message, parcel.tree)
    with pytest.raises(MessageError, match="must be of parts named by their SHA-256"):
        draft.put("0" * 64, b"content")
    with pytest.raises(MessageError):
        draft.put("../escaped", b"content")


@pytest.mark.parametrize("stops_after", [0, 1, 3])
def test_an_interrupted_draft_leaves_what_was_there(tmp_path: Path, stops_after: int) -> None:
    parcel, source = stored(tmp_path, make_message(text="old")), Parcel(tmp_path / "source")
    source.store(make_message(text="new"))
    contents = {file.name: file.read_bytes() for file in parts(source)}
    draft = parcel.draft(source.message, source.tree)
    for name in list(contents)[:stops_after]:
        draft.put(name, contents[name])
    assert parcel.load().content.config_records["config"]["text"] == "old"
    draft = parcel.draft(source.message, source.tree)  # the next attempt starts from nothing
    for name, content in contents.items():
        draft.put(name, content)
    draft.commit()
    assert parcel.load().content.config_records["config"]["text"] == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inbox", "source"]


def test_parts_are_on_disk_before_the_message_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut must not leave a message of empty parts."""
    synced: list[str] = []

    def fsync(handle: int) -> None:
        assert not (tmp_path / "inbox").exists()
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))

    monkeypatch.setattr(os, "fsync", fsync)
    parcel = stored(tmp_path)
    assert {Path(path).name for path in synced} >= {file.name for file in parcel.folder.iterdir()}
