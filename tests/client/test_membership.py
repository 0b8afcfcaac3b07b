"""Is a site a member under its own key and name only?"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from client.membership import (
    KIT,
    PRIVATE_KEY,
    PUBLIC_KEY,
    join,
    make_keys,
    own_key,
    read_membership,
    write_public_key,
)
from shared.errors import KeyFileError
from shared.keys import PrivateKey, new_key, parse_public_key
from shared.kit import Kit
from tests.memberships import NOW, keyed_site, make_kit


@pytest.fixture
def north(tmp_path: Path) -> Path:
    return keyed_site(tmp_path / "north")[0].path


def kit_file(folder: Path, kit: Kit) -> Path:
    file = folder / "kit.json"
    file.write_text(kit.to_json())
    return file


def test_the_public_half_is_of_the_private_one_which_is_its_owners_alone(north: Path) -> None:
    public = parse_public_key((north / PUBLIC_KEY).read_bytes(), "k")
    assert public == own_key(north).public_key()
    assert "PRIVATE" not in (north / PUBLIC_KEY).read_text()
    assert (north / PRIVATE_KEY).stat().st_mode & 0o777 == 0o600
    assert (north / PRIVATE_KEY).parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_was_there_becomes_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "state/keys").mkdir(parents=True, mode=0o755)
    make_keys(tmp_path)
    assert (tmp_path / "state/keys").stat().st_mode & 0o777 == 0o700


def test_a_key_is_replaced_only_when_asked(north: Path) -> None:
    before = own_key(north).private_numbers()
    with pytest.raises(KeyFileError, match=r"must not exist yet\. Give --new"):
        make_keys(north)
    assert own_key(north).private_numbers() == before
    make_keys(north, anew=True)
    assert own_key(north).private_numbers() != before
    assert parse_public_key((north / PUBLIC_KEY).read_bytes(), "k") == own_key(north).public_key()


@pytest.mark.parametrize("stops_at", ["fsync", "replace"])
def test_a_replacement_that_is_killed_leaves_a_key(north: Path, monkeypatch: pytest.MonkeyPatch, stops_at: str) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    before = own_key(north).private_numbers()
    with monkeypatch.context() as patched:
        patched.setattr(os, stops_at, killed)
        with pytest.raises(KeyboardInterrupt):
            make_keys(north, anew=True)
    assert own_key(north).private_numbers() == before
    make_keys(north, anew=True)


def test_the_public_half_can_be_written_again(north: Path) -> None:
    (north / PUBLIC_KEY).unlink()
    file = write_public_key(north)
    assert parse_public_key(file.read_bytes(), "k") == own_key(north).public_key()


def test_a_site_without_a_key_is_told_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"Make it by fedretina site keys\."):
        own_key(tmp_path)


def test_joining_keeps_the_kit(north: Path) -> None:
    kit = make_kit("north", own_key(north))
    assert join(north, kit_file(north, kit), NOW) == kit
    membership = read_membership(north)
    assert membership.kit == kit
    assert membership.key.private_numbers() == own_key(north).private_numbers()


def kits(key: PrivateKey) -> dict[str, tuple[Kit, str]]:
    good = make_kit("north", key)
    return {
        "another site": (replace(good, site="south"), "site must be north, got 'south'"),
        "another key": (make_kit("north", new_key()), "public_key must be this site's"),
        "expired": (make_kit("north", key, NOW - timedelta(days=31)), "expires_at must not have passed"),
        "expired just now": (replace(good, expires_at=NOW.isoformat()), "expires_at must not have passed"),
    }


@pytest.mark.parametrize("case", ["another site", "another key", "expired", "expired just now"])
def test_a_kit_that_is_not_for_this_site_now_changes_nothing(north: Path, case: str) -> None:
    kit, rule = kits(own_key(north))[case]
    with pytest.raises(KeyFileError, match=rule):
        join(north, kit_file(north, kit), NOW)
    assert not (north / KIT).exists()


def test_a_wrong_kit_leaves_the_membership_as_it_was(north: Path) -> None:
    good = make_kit("north", own_key(north))
    join(north, kit_file(north, good), NOW)
    with pytest.raises(KeyFileError):
        join(north, kit_file(north, make_kit("north", new_key())), NOW)
    assert read_membership(north).kit == good


def test_an_absent_kit_is_named(north: Path) -> None:
    with pytest.raises(KeyFileError, match=r"none\.json must exist\. Ask the coordinator for a kit"):
        join(north, north / "none.json")


def test_who_has_not_joined_is_told_how(north: Path) -> None:
    with pytest.raises(KeyFileError, match=r"must have joined a federation.*fedretina site join"):
        read_membership(north)


def test_after_a_new_key_the_site_must_join_again(north: Path) -> None:
    join(north, kit_file(north, make_kit("north", own_key(north))), NOW)
    make_keys(north, anew=True)
    with pytest.raises(KeyFileError, match="must be for the site's present key"):
        read_membership(north)
