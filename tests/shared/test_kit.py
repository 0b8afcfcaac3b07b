"""Is a kit what the coordinator wrote, or refused?"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import KeyFileError
from shared.kit import parse_kit
from tests.memberships import make_kit

KIT = make_kit()


def altered(**changes: Any) -> bytes:
    return json.dumps({**json.loads(KIT.to_json()), **changes}).encode()


def test_parsing_is_the_inverse_of_writing() -> None:
    assert parse_kit(KIT.to_json().encode(), "kit") == KIT


def test_a_kit_holds_no_secret() -> None:
    assert "PRIVATE" not in KIT.to_json()


def test_the_fingerprint_is_of_the_authority_alone() -> None:
    assert replace(KIT, site="south", address="elsewhere:1").fingerprint == KIT.fingerprint
    assert make_kit().fingerprint != KIT.fingerprint


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 100_000,
        altered(site=3),
        altered(authority="no certificate"),
        altered(authority=KIT.public_key),
        altered(expires_at="soon"),
        altered(expires_at="2030-01-01T00:00:00"),
        altered(address="coordinator"),
        altered(address=":9443"),
        altered(address="coordinator:https"),
        json.dumps({key: value for key, value in json.loads(KIT.to_json()).items() if key != "address"}).encode(),
    ],
)
def test_what_is_no_kit_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(KeyFileError) as caught:
        parse_kit(content, "kit.json")
    assert str(caught.value) == "kit.json must be a kit. Ask the coordinator for a new one."


def test_a_kit_of_a_later_format_says_so() -> None:
    with pytest.raises(KeyFileError, match="must be of format 1"):
        parse_kit(altered(format=2), "kit.json")


@given(st.binary(max_size=100))
def test_no_bytes_break_the_parser(content: bytes) -> None:
    with pytest.raises(KeyFileError):
        parse_kit(content, "kit.json")


@given(st.integers(0, 10_000))
def test_a_cut_kit_is_refused(length: int) -> None:
    whole = KIT.to_json().encode()
    with pytest.raises(KeyFileError):
        parse_kit(whole[: length % len(whole)], "kit.json")
