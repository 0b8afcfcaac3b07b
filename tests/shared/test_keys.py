"""Is a key its owner's alone, and does a signature prove what it must?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import KeyFileError
from shared.keys import (
    fingerprint,
    is_signed,
    new_key,
    parse_public_key,
    private_pem,
    public_pem,
    read_private_key,
    sign,
    write_secret,
)

KEY, OTHER = new_key(), new_key()


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None = None) -> bytes:
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def test_reading_is_the_inverse_of_writing(tmp_path: Path) -> None:
    write_secret(tmp_path / "k", private_pem(KEY))
    assert read_private_key(tmp_path / "k").private_numbers() == KEY.private_numbers()
    assert parse_public_key(public_pem(KEY.public_key()), "k") == KEY.public_key()


def test_a_secret_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_secret(tmp_path / "keys" / "k", b"secret")
    finally:
        os.umask(before)
    assert (tmp_path / "keys" / "k").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


def test_a_secret_is_never_replaced(tmp_path: Path) -> None:
    write_secret(tmp_path / "k", b"first")
    with pytest.raises(FileExistsError):
        write_secret(tmp_path / "k", b"second")
    assert (tmp_path / "k").read_bytes() == b"first"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    write_secret(tmp_path / "k", private_pem(KEY))
    (tmp_path / "k").chmod(mode)
    with pytest.raises(KeyFileError, match=f"must be readable by its owner alone, got '0o{mode:o}'. chmod 600 it"):
        read_private_key(tmp_path / "k")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "must hold a private key as PEM"),
        (public_pem(KEY.public_key()), "must hold a private key as PEM"),
        (pem(KEY, b"password"), "without a password"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "on the curve P-384"),
        (pem(rsa.generate_private_key(65537, 2048)), "on the curve P-384"),
    ],
)
def test_what_is_no_usable_private_key_is_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    write_secret(tmp_path / "k", content)
    with pytest.raises(KeyFileError, match=rule):
        read_private_key(tmp_path / "k")


def test_an_absent_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"k must exist"):
        read_private_key(tmp_path / "k")


@pytest.mark.parametrize(
    "content", [b"", b"\xff", private_pem(KEY), public_pem(ec.generate_private_key(ec.SECP256R1()).public_key())]
)
def test_what_is_no_usable_public_key_is_refused_by_its_name(content: bytes) -> None:
    with pytest.raises(KeyFileError, match="key of north must hold a public key"):
        parse_public_key(content, "key of north")


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_signature_holds_for_its_content_and_key_alone(content: bytes, other: bytes) -> None:
    signature = sign(KEY, content)
    assert is_signed(KEY.public_key(), content, signature)
    assert is_signed(KEY.public_key(), other, signature) == (other == content)
    assert not is_signed(OTHER.public_key(), content, signature)


@given(st.binary(max_size=150))
def test_no_bytes_pass_for_a_signature(signature: bytes) -> None:
    assert not is_signed(KEY.public_key(), b"content", signature)


def test_fingerprints_tell_keys_apart_and_depend_on_the_key_alone() -> None:
    digits = fingerprint(KEY.public_key())
    assert digits == fingerprint(parse_public_key(public_pem(KEY.public_key()), "k"))
    assert digits != fingerprint(OTHER.public_key())
    assert [len(group) for group in digits.split(" ")] == [4, 4, 4, 4]
