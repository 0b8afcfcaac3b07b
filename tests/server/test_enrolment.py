"""Who may connect, until when, and can a name or a key ever mean two sites?"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from server.enrolment import SITES, enrol, read_enrolments, revoke, valid_enrolments
from shared.errors import KeyFileError
from shared.keys import PrivateKey, fingerprint, new_key, private_pem, public_pem

NOW = datetime(2030, 6, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def pem(key: PrivateKey) -> bytes:
    return public_pem(key.public_key())


def names(folder: Path, at: datetime = NOW) -> list[str]:
    return [enrolment.site for enrolment in valid_enrolments(folder, at)]


def test_nobody_is_enrolled_at_first(tmp_path: Path) -> None:
    assert read_enrolments(tmp_path) == []
    assert valid_enrolments(tmp_path) == []


def test_an_enrolment_is_valid_until_its_last_second(tmp_path: Path) -> None:
    enrolment = enrol(tmp_path, "north", pem(new_key()), 30, NOW)
    assert read_enrolments(tmp_path) == [enrolment]
    assert enrolment.expires_at == "2030-07-01T12:00:00+00:00"
    end = NOW + 30 * DAY
    assert names(tmp_path, end - timedelta(seconds=1)) == ["north"]
    assert names(tmp_path, end) == []


def test_a_key_is_named_by_the_same_digits_everywhere(tmp_path: Path) -> None:
    key = new_key()
    digits = enrol(tmp_path, "north", pem(key), 30, NOW).fingerprint
    assert digits == fingerprint(key.public_key())
    assert len(digits.replace(" ", "")) == 16


def test_the_list_is_for_its_owner(tmp_path: Path) -> None:
    enrol(tmp_path, "north", pem(new_key()), 30, NOW)
    assert (tmp_path / SITES).stat().st_mode & 0o777 == 0o600


def test_enrolling_again_moves_the_end_and_nothing_else(tmp_path: Path) -> None:
    key = new_key()
    enrol(tmp_path, "south", pem(new_key()), 30, NOW)
    for days in (30, 365, 10):
        enrol(tmp_path, "north", pem(key), days, NOW + DAY)
        assert names(tmp_path, NOW + DAY) == ["north", "south"]
    assert read_enrolments(tmp_path)[0].expires_at == (NOW + 11 * DAY).isoformat()


def test_who_is_revoked_is_out_and_stays_in_the_list(tmp_path: Path) -> None:
    for name in ("north", "south"):
        enrol(tmp_path, name, pem(new_key()), 30, NOW)
    revoke(tmp_path, "north", NOW + DAY)
    assert names(tmp_path) == ["south"]
    assert [enrolment.revoked_at for enrolment in read_enrolments(tmp_path)] == ["2030-06-02T12:00:00+00:00", ""]


def test_who_is_not_enrolled_cannot_be_revoked(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"site must be enrolled, got 'north'\. Enrolled: none"):
        revoke(tmp_path, "north")
    enrol(tmp_path, "north", pem(new_key()), 30, NOW)
    with pytest.raises(KeyFileError, match="Enrolled: north"):
        revoke(tmp_path, "nort")
    revoke(tmp_path, "north")
    with pytest.raises(KeyFileError, match="must be enrolled"):
        revoke(tmp_path, "north")


@pytest.mark.parametrize("ending", ["revoked", "expired"])
def test_a_key_whose_leave_ended_is_never_taken_again(tmp_path: Path, ending: str) -> None:
    key, later = new_key(), NOW + 40 * DAY
    enrol(tmp_path, "north", pem(key), 30, NOW)
    if ending == "revoked":
        revoke(tmp_path, "north", NOW)
    for name in ("north", "south"):
        with pytest.raises(KeyFileError, match=f"key of {name} must"):
            enrol(tmp_path, name, pem(key), 30, later)
    enrol(tmp_path, "north", pem(new_key()), 30, later)
    assert names(tmp_path, later) == ["north"]


def test_a_key_is_of_one_site(tmp_path: Path) -> None:
    key = new_key()
    enrol(tmp_path, "north", pem(key), 30, NOW)
    with pytest.raises(KeyFileError, match="key of south must be no other site's, got 'north'"):
        enrol(tmp_path, "south", pem(key), 30, NOW)


def test_a_key_written_otherwise_is_the_same_key(tmp_path: Path) -> None:
    key = new_key()
    enrol(tmp_path, "north", pem(key), 30, NOW)
    with pytest.raises(KeyFileError, match="must be no other site's"):
        enrol(tmp_path, "south", b"comment\n" + pem(key).replace(b"\n", b"\r\n"), 30, NOW)


def test_a_site_has_one_valid_key(tmp_path: Path) -> None:
    enrol(tmp_path, "north", pem(new_key()), 30, NOW)
    with pytest.raises(KeyFileError, match="Take the old key's leave first: fedretina coordinator revoke north"):
        enrol(tmp_path, "north", pem(new_key()), 30, NOW)
    enrol(tmp_path, "north", pem(new_key()), 30, NOW + 31 * DAY)
    assert names(tmp_path, NOW + 31 * DAY) == ["north"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "-x", ".x", "a b", "a\n", "ä", "a" * 64, "\x1b[31m"])
def test_a_name_is_one_that_a_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="site must be of letters"):
        enrol(tmp_path, name, pem(new_key()), 30, NOW)
    assert not (tmp_path / SITES).exists()


def test_only_a_public_key_on_the_right_curve_is_taken(tmp_path: Path) -> None:
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    for key in (
        b"",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        private_pem(new_key()),
        public_pem(ec.generate_private_key(ec.SECP256R1()).public_key()),
        other.public_bytes(*form),
    ):
        with pytest.raises(KeyFileError, match="key of north must hold a public key"):
            enrol(tmp_path, "north", key, 30, NOW)


def test_the_list_is_text_that_people_read(tmp_path: Path) -> None:
    enrol(tmp_path, "north", pem(new_key()), 30, NOW)
    (entry,) = json.loads((tmp_path / SITES).read_text())
    assert set(entry) == {"site", "public_key", "enrolled_at", "expires_at", "revoked_at"}
