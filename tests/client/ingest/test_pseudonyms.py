"""Is a patient the same person everywhere in a site, and nobody outside it?"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.ingest.pseudonyms import KEY, Pseudonyms, find_pseudonyms, open_pseudonyms
from shared.errors import KeyFileError

NAMES = Pseudonyms(bytes(range(32)))
anything = st.text() | st.binary().map(os.fsdecode)  # also what is no UTF-8


@given(anything)
def test_a_subject_id_is_a_positive_int64_and_white_space_around_the_original_does_not_count(original: str) -> None:
    number = NAMES.subject_id(original)
    assert 0 < number < 2**63
    assert number == NAMES.subject_id(f" \t{original}\n")


@pytest.mark.parametrize("other", ["0012", "12.0", "1 2", "A12", "a12"])
def test_nothing_but_white_space_around_it_is_normalised(other: str) -> None:
    assert NAMES.subject_id(other) != NAMES.subject_id("12")
    assert NAMES.subject_id("A12") != NAMES.subject_id("a12")


@given(anything, anything)
def test_names_differ_by_original_and_by_kind(first: str, second: str) -> None:
    assert (NAMES.name("scan", first) == NAMES.name("scan", second)) == (first == second)
    assert NAMES.name("scan", first) != NAMES.name("pair", first)
    assert len(bytes.fromhex(NAMES.name("scan", first))) == 16


def test_known_values_never_change() -> None:
    """Sites hold pseudonyms that were made by this. The values are what openssl dgst -sha256 -mac HMAC gives."""
    assert NAMES.subject_id("4711") == 0x95B0A2D5BDCA5959 >> 1
    assert NAMES.name("scan", "1.2.3") == "37b36cfbc7ec387ac03ece7daef5198b"


def test_two_sites_share_no_pseudonym(tmp_path: Path) -> None:
    one, two = open_pseudonyms(tmp_path / "a"), open_pseudonyms(tmp_path / "b")
    assert one.subject_id("4711") != two.subject_id("4711")
    assert one.name("scan", "x") != two.name("scan", "x")


def test_the_key_is_made_once_for_its_owner_alone_and_is_not_shown(tmp_path: Path) -> None:
    first, second = open_pseudonyms(tmp_path), open_pseudonyms(tmp_path)
    assert first == second
    assert (tmp_path / KEY).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / KEY).parent.stat().st_mode & 0o777 == 0o700
    assert first.key.hex() not in repr(first)
    assert str(first.key) not in repr(first)
    assert [file.name for file in (tmp_path / KEY).parent.iterdir()] == ["pseudonyms.key"]


def test_many_that_begin_at_once_get_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: open_pseudonyms(tmp_path).key, range(8)))) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    open_pseudonyms(tmp_path)
    (tmp_path / KEY).chmod(mode)
    with pytest.raises(KeyFileError, match="owner alone"):
        open_pseudonyms(tmp_path)


def test_a_key_of_another_length_is_refused(tmp_path: Path) -> None:
    open_pseudonyms(tmp_path)
    (tmp_path / KEY).write_bytes(b"short")
    with pytest.raises(KeyFileError, match="32 bytes"):
        open_pseudonyms(tmp_path)


def test_a_look_makes_no_key_and_raises_what_an_import_would(tmp_path: Path) -> None:
    assert find_pseudonyms(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert open_pseudonyms(tmp_path) == find_pseudonyms(tmp_path)
    (tmp_path / KEY).write_bytes(b"xy")
    with pytest.raises(KeyFileError, match=r"must be 32 bytes, got '2 bytes'\. Restore it"):
        find_pseudonyms(tmp_path)


def test_no_new_key_is_made_where_imports_were_made_with_a_lost_one(tmp_path: Path) -> None:
    part = tmp_path / "state" / "imports" / "events" / "part.parquet"
    part.parent.mkdir(parents=True)
    part.touch()
    with pytest.raises(KeyFileError, match="Restore it"):
        open_pseudonyms(tmp_path)
