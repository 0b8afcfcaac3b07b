"""Are the contents of parts in files beside the database, whole or not at all, and gone with their messages?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flwr.app import ConfigRecord
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError, get_object_id
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.object_store.object_store import ObjectStore

from client.parcels import Parcel
from server.coordinator import DATABASE
from server.grid import running_grid
from server.link import drop_messages, open_link_state, parts_of
from server.parts import PartFiles
from tests.server.links import LARGE, Link, answer, link, take_part, task

RUN = 1


@pytest.fixture
def store(tmp_path: Path) -> PartFiles:
    state = open_link_state(tmp_path / DATABASE)
    assert isinstance(state.object_store, PartFiles)
    return state.object_store


def part(text: str = "a secret") -> tuple[str, bytes]:
    content = ConfigRecord({"text": text}).deflate()
    return get_object_id(content), content


def test_a_part_is_a_file_that_others_cannot_read(store: PartFiles, tmp_path: Path) -> None:
    name, content = part()
    assert store.get(name) is None
    store.preregister(RUN, ObjectTree(object_id=name))
    assert store.get(name) == b""
    store.put(name, content)
    assert store.get(name) == content
    assert store.size_bytes(name) == len(content)
    file = tmp_path / "link.parts" / name
    assert file.read_bytes() == content
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert b"a secret" in content
    assert all(b"a secret" not in file.read_bytes() for file in tmp_path.glob(f"{DATABASE}*"))


def test_what_a_killed_writer_left_is_not_read_and_is_written_over(store: PartFiles) -> None:
    name, content = part()
    store.preregister(RUN, ObjectTree(object_id=name))
    for left in (content[:-1], content + b"more"):
        (store.folder / name).write_bytes(left)
        assert store.get(name) == b""
    store.put(name, content)
    assert store.get(name) == content
    store.put(name, content)  # another message has the same part
    assert store.get(name) == content


def test_only_parts_that_are_to_come_are_taken(store: PartFiles) -> None:
    name, content = part()
    with pytest.raises(NoObjectInStoreError):
        store.put(name, content)
    with pytest.raises(UnexpectedObjectContentError):
        store.put(name, b"no part")
    store.sweep()
    assert not os.listdir(store.folder)


def test_sweeping_takes_what_is_not_known_and_nothing_else(store: PartFiles) -> None:
    (kept, content), (gone, other) = part("a"), part("b")
    for name, written in ((kept, content), (gone, other)):
        store.preregister(RUN, ObjectTree(object_id=name))
        store.put(name, written)
    store.delete(gone)
    assert store.get(gone) is None
    store.sweep()
    assert os.listdir(store.folder) == [kept]
    (store.folder / kept).unlink()  # swept by another process after this one had looked
    assert store.get(kept) is None


def test_no_file_stays_when_messages_are_dropped_or_a_run_ends(tmp_path: Path) -> None:
    with link(tmp_path / "coordinator") as place:
        key = place.enrol("north")
        files = tmp_path / "coordinator" / "link.parts"
        with running_grid(place.state) as grid, place.connect(key) as connection:
            (message_id,) = grid.push_messages([task(place.node("north"), LARGE)])
            assert sum(file.stat().st_size for file in files.iterdir()) > LARGE["w"].nbytes
            take_part(connection, tmp_path)
            drop_messages(place.state, [message_id])
            assert not list(files.iterdir())
            grid.push_messages([task(place.node("north"), LARGE)])
        assert not list(files.iterdir())
        with pytest.raises(SystemExit):
            ask_and_stop(place)
        assert not list(files.iterdir())


def ask_and_stop(place: Link) -> None:
    """As ``coordinator stop`` ends a study's process."""
    with running_grid(place.state) as grid:
        grid.push_messages([task(place.node("north"), LARGE)])
        raise SystemExit(143)


def test_a_part_that_is_not_what_its_name_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a site could give another site's answer, which has a part of that name too, its own content."""
    with link(tmp_path / "coordinator") as place:
        key = place.enrol("north")
        with running_grid(place.state) as grid, place.connect(key) as connection:
            grid.push_messages([task(place.node("north"))])
            inbox, outbox = Parcel(tmp_path / "inbox"), Parcel(tmp_path / "outbox")
            assert connection.pull(inbox)
            answer(inbox, outbox)
            largest = max(parts_named(outbox), key=lambda name: len(outbox.read(name)))
            read, content = outbox.read, bytearray(outbox.read(largest))
            content[-1] ^= 1
            monkeypatch.setattr(outbox, "read", lambda part: bytes(content) if part == largest else read(part))
            with pytest.raises(Exception, match="a part must be what its name says"):
                connection.push(outbox)
            assert parts_of(place.state, outbox.message_id).get(largest, "unknown") in (None, "unknown")


def parts_named(parcel: Parcel) -> list[str]:
    return [file.name for file in parcel.folder.iterdir() if len(file.name) == 64]


def test_flowers_store_is_as_it_is_taken() -> None:
    """The rest is inherited: a way to get at contents that Flower adds would find none in the database."""
    own = {name for name in vars(ObjectStore) if not name.startswith("_")}
    assert own == {"preregister", "get_object_tree", "put", "get", "delete", "delete_objects_in_run", "clear"}
