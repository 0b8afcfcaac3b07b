"""Is a checkpoint what was saved, whole, or refused?"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from shared import files
from shared.checkpoints import load_arrays, save_arrays
from shared.errors import CheckpointError
from shared.files import write_atomic
from shared.weights import Weights

ARRAYS: Weights = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array(1.5, dtype=np.float64),
    "none": np.zeros((0, 2), dtype=np.float32),
    "counts": np.array([1, -2], dtype=np.int64),
}
FACTS = {"kind": "test", "round": 3, "nested": {"x": [1, None, "é"]}}


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


def test_loading_is_the_inverse_of_saving(tmp_path: Path) -> None:
    save_arrays(tmp_path / "x", ARRAYS, FACTS)
    arrays, facts = load_arrays(tmp_path / "x")
    assert_same(arrays, ARRAYS)
    assert facts == FACTS


def test_views_are_saved_as_they_read(tmp_path: Path) -> None:
    view = np.arange(12.0).reshape(3, 4).T[::2]
    save_arrays(tmp_path / "x", {"v": view}, {})
    np.testing.assert_array_equal(load_arrays(tmp_path / "x")[0]["v"], view)


@pytest.mark.parametrize(("flip", "first"), [(0x01, 0), (0xFF, 1), (0x20, 2)])
def test_a_flipped_byte_anywhere_is_detected(tmp_path: Path, flip: int, first: int) -> None:
    file = tmp_path / "x"
    save_arrays(file, ARRAYS, FACTS)
    whole = file.read_bytes()
    for place in range(first, len(whole), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        with pytest.raises(CheckpointError):
            load_arrays(file)


def test_a_truncated_file_is_detected(tmp_path: Path) -> None:
    file = tmp_path / "x"
    save_arrays(file, ARRAYS, FACTS)
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_arrays(file)


def test_a_file_of_other_facts_is_detected(tmp_path: Path) -> None:
    file = tmp_path / "x"
    save_arrays(file, ARRAYS, {"round": 3})
    file.write_bytes(file.read_bytes().replace(b'\\"round\\": 3', b'\\"round\\": 4'))
    with pytest.raises(CheckpointError, match=r"must be undamaged\. Take an earlier checkpoint"):
        load_arrays(file)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none must exist"):
        load_arrays(tmp_path / "none")
    with pytest.raises(CheckpointError, match="must be a readable checkpoint"):
        load_arrays(tmp_path)


@pytest.mark.parametrize("stops_at", ["fsync", "replace"])
def test_a_save_that_is_killed_leaves_the_old_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_at: str
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "x"
    save_arrays(file, ARRAYS, {"round": 1})
    with monkeypatch.context() as patched:
        patched.setattr(os, stops_at, killed)
        with pytest.raises(KeyboardInterrupt):
            save_arrays(file, {"b": np.zeros(9)}, {"round": 2})
    arrays, facts = load_arrays(file)
    assert facts == {"round": 1}
    assert_same(arrays, ARRAYS)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_content_is_on_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut between rename and write would leave an empty file under the old name."""
    deeds: list[str] = []
    for name in ("fsync", "replace"):
        deed = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *a, d=deed, n=name: (deeds.append(n), d(*a))[1])
    write_atomic(tmp_path / "deep" / "x", b"content")
    assert deeds == ["fsync", "replace", "fsync"]
    assert (tmp_path / "deep" / "x").read_bytes() == b"content"


def test_facts_that_json_cannot_hold_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_arrays(tmp_path / "x", {}, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
