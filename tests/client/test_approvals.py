"""Does a site do only what it agreed to, for as long as it agreed?"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import approvals
from client.approvals import (
    APPROVED,
    DECISIONS,
    REFUSED,
    STUDIES,
    NotApprovedError,
    accept,
    asked_studies,
    decide,
    find_study,
    latest_approved,
    read_decision,
    remember_study,
    revoke,
)
from client.membership import make_keys, own_key
from shared.errors import ConfigError, FedretinaError
from shared.keys import PrivateKey, new_key
from shared.knobs import digest, from_json, to_json
from tests.factories import make_study
from tests.memberships import NOW, make_task

STUDY = make_study()
KEY = new_key()
PUBLIC = KEY.public_key()


def refused(folder: Path, **changes: Any) -> NotApprovedError:
    with pytest.raises(NotApprovedError) as caught:
        accept(folder, PUBLIC, make_task(**changes), NOW)
    assert "\n" not in str(caught.value)
    assert str(folder) not in caught.value.for_others()  # it leaves the site
    return caught.value


def decision_file(folder: Path) -> Path:
    return folder / DECISIONS / f"{digest(STUDY)}.json"


def test_what_was_approved_is_done(tmp_path: Path) -> None:
    decide(tmp_path, KEY, STUDY, APPROVED, at=NOW)
    for stage in ("pretrain", "finetune"):
        accept(tmp_path, PUBLIC, make_task(stage=stage), NOW)
    for stage in ("survey", "evaluate"):
        accept(tmp_path, PUBLIC, make_task(stage=stage, round=0, rounds=0), NOW)


def test_before_anybody_decided_it_may_come_and_is_kept_for_review(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert error.may_come
    assert f"fedretina site review {digest(STUDY)[:12]}" in str(error)
    assert asked_studies(tmp_path) == {digest(STUDY): STUDY}


def test_a_refusal_is_final(tmp_path: Path) -> None:
    decide(tmp_path, KEY, STUDY, REFUSED, at=NOW)
    error = refused(tmp_path)
    assert not error.may_come
    assert "got 'refused'" in str(error)


def test_an_approval_can_be_taken_back_once(tmp_path: Path) -> None:
    with pytest.raises(FedretinaError, match="must be approved at this site to be revoked, got 'undecided'"):
        revoke(tmp_path, KEY, STUDY)
    decide(tmp_path, KEY, STUDY, APPROVED, at=NOW)
    revoke(tmp_path, KEY, STUDY)
    error = refused(tmp_path)
    assert not error.may_come
    assert "got 'revoked'" in str(error)
    with pytest.raises(FedretinaError, match="got 'revoked'"):
        revoke(tmp_path, KEY, STUDY)
    decide(tmp_path, KEY, STUDY, APPROVED, at=NOW)
    accept(tmp_path, PUBLIC, make_task(), NOW)


def test_an_approval_ends_to_the_second(tmp_path: Path) -> None:
    decide(tmp_path, KEY, STUDY, APPROVED, days=2, at=NOW - timedelta(days=2))
    accept(tmp_path, PUBLIC, make_task(), NOW - timedelta(seconds=1))
    error = refused(tmp_path)
    assert "must not have expired" in str(error)
    assert not error.may_come


def test_another_study_needs_its_own_approval(tmp_path: Path) -> None:
    decide(tmp_path, KEY, STUDY, APPROVED, at=NOW)
    assert refused(tmp_path, study=make_study({"seed": 2})).may_come


def knobs(data: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from knobs(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


NUMBERS = [(n, v) for n, v in knobs(json.loads(to_json(STUDY))) if type(v) in (int, float)]


@given(st.sampled_from(NUMBERS), st.integers(-3, 3), st.floats(0.1, 2.0))
def test_a_study_that_differs_in_any_number_needs_a_new_approval(
    tmp_path: Path, knob: tuple[str, Any], step: int, factor: float
) -> None:
    name, value = knob
    data = json.loads(to_json(STUDY))
    *parents, last = name.split(".")
    node = data
    for parent in parents:
        node = node[parent]
    node[last] = value + step if type(value) is int else value * factor
    try:
        changed = from_json(type(STUDY), json.dumps(data))
    except ConfigError:
        return  # no study at all
    decide(tmp_path, KEY, STUDY, APPROVED, at=NOW)
    if changed == STUDY:
        accept(tmp_path, PUBLIC, make_task(changed), NOW)
    else:
        assert refused(tmp_path, study=changed).may_come


def test_updated_code_needs_a_new_approval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decide(tmp_path, KEY, STUDY, APPROVED, at=NOW)
    task = make_task(code="f" * 64)
    monkeypatch.setattr(approvals, "code_digest", lambda: "f" * 64)
    with pytest.raises(NotApprovedError, match="must be of the code that is installed at the site now") as caught:
        accept(tmp_path, PUBLIC, task, NOW)
    assert not caught.value.may_come
    decide(tmp_path, KEY, STUDY, APPROVED, at=NOW)
    accept(tmp_path, PUBLIC, task, NOW)


def test_a_coordinator_of_other_code_is_refused(tmp_path: Path) -> None:
    decide(tmp_path, KEY, STUDY, APPROVED, at=NOW)
    assert "Install the same version" in str(refused(tmp_path, code="f" * 64))


@pytest.mark.parametrize(("stage", "most"), [("pretrain", 2), ("finetune", 3), ("survey", 5), ("evaluate", 5)])
def test_more_rounds_than_were_approved_are_refused(tmp_path: Path, stage: str, most: int) -> None:
    study = make_study({"pretrain.rounds": 2, "finetune.rounds": 3})
    decide(tmp_path, KEY, study, APPROVED, at=NOW)
    accept(tmp_path, PUBLIC, make_task(study, stage=stage, rounds=most), NOW)
    assert f"must be <= {most}, as approved" in str(refused(tmp_path, study=study, stage=stage, rounds=most + 1))


def test_a_decision_of_another_key_counts_for_nothing(tmp_path: Path) -> None:
    decide(tmp_path, new_key(), STUDY, APPROVED, at=NOW)
    error = refused(tmp_path)
    assert not error.may_come
    assert "must be signed by this site's key" in str(error)
    assert latest_approved(tmp_path, PUBLIC) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("verdict", APPROVED),
        ("study_name", "other"),
        ("code_digest", "0" * 64),
        ("rounds", 10_000),
        ("expires_at", "2999-01-01T00:00:00+00:00"),
        ("decided_at", "2000-01-01T00:00:00+00:00"),
    ],
)
def test_an_edited_decision_counts_for_nothing(tmp_path: Path, field: str, value: object) -> None:
    decide(tmp_path, KEY, STUDY, REFUSED, at=NOW)
    data = json.loads(decision_file(tmp_path).read_text())
    data["decision"][field] = value
    decision_file(tmp_path).write_text(json.dumps(data))
    assert "must be signed by this site's key" in str(refused(tmp_path))


def test_an_approval_of_one_study_is_none_of_another(tmp_path: Path) -> None:
    other = make_study({"seed": 2})
    decide(tmp_path, KEY, other, APPROVED, at=NOW)
    (tmp_path / DECISIONS / f"{digest(other)}.json").rename(decision_file(tmp_path))
    assert "must be signed by this site's key" in str(refused(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"{}",
        b"[]",
        b"[" * 100_000,
        b'{"decision": {}, "signature": ""}',
        b'{"decision": 1, "signature": "zz"}',
    ],
)
def test_what_is_no_decision_counts_for_nothing(tmp_path: Path, content: bytes) -> None:
    decide(tmp_path, KEY, STUDY, APPROVED, at=NOW)
    decision_file(tmp_path).write_bytes(content)
    assert not refused(tmp_path).may_come


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_cut_or_flipped_decision_passes(tmp_path: Path, at: int, flip: int) -> None:
    decide(tmp_path, KEY, STUDY, APPROVED, at=NOW)
    whole = decision_file(tmp_path).read_bytes()
    signed, place = json.loads(whole), at % len(whole)
    flipped = whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
    for content in (whole[:place], flipped):
        decision_file(tmp_path).write_bytes(content)
        try:
            accept(tmp_path, PUBLIC, make_task(), NOW)
        except NotApprovedError:
            continue
        assert json.loads(content)["decision"] == signed["decision"]  # a space was flipped, or the case of a digit


@pytest.mark.parametrize("days", [0, -1, 10**9])
def test_an_unreasonable_term_is_refused(tmp_path: Path, days: int) -> None:
    with pytest.raises(FedretinaError, match="days must be >= 1 and <= 3660"):
        decide(tmp_path, KEY, STUDY, APPROVED, days)
    assert read_decision(tmp_path, PUBLIC, digest(STUDY)) is None


# What was asked for


def test_a_study_is_found_by_digits_name_or_file(tmp_path: Path) -> None:
    other = make_study({"name": "other"})
    for study in (STUDY, other):
        remember_study(tmp_path, study)
    assert find_study(tmp_path, digest(STUDY)[:6]) == STUDY
    assert find_study(tmp_path, "other") == other
    third = make_study({"name": "third"})
    (tmp_path / "third.json").write_text(to_json(third))
    assert find_study(tmp_path, str(tmp_path / "third.json")) == third


def test_one_that_is_not_named_must_be_the_only_one(tmp_path: Path) -> None:
    with pytest.raises(FedretinaError, match="Asked for: none yet"):
        find_study(tmp_path, "")
    remember_study(tmp_path, STUDY)
    assert find_study(tmp_path, "") == STUDY
    again = make_study({"seed": 2})
    remember_study(tmp_path, again)
    for name in ("", "tiny", "nothing"):
        with pytest.raises(FedretinaError) as caught:
            find_study(tmp_path, name)
        assert digest(STUDY)[:12] in str(caught.value)
        assert digest(again)[:12] in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b'{"sead": 1}'])
def test_a_file_that_is_no_study_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"s\.json"):
        find_study(tmp_path, str(tmp_path / "s.json"))


def test_a_study_that_was_changed_on_disk_is_left_out_until_it_is_asked_for_again(tmp_path: Path) -> None:
    name = remember_study(tmp_path, STUDY)
    decide(tmp_path, KEY, STUDY, APPROVED, at=NOW)
    (tmp_path / STUDIES / f"{name}.json").write_text(to_json(make_study({"seed": 2})))
    (tmp_path / STUDIES / f"{'0' * 64}.json").write_text("{")
    assert asked_studies(tmp_path) == {}
    assert latest_approved(tmp_path, PUBLIC) is None
    remember_study(tmp_path, STUDY)
    assert asked_studies(tmp_path) == {name: STUDY}


def test_no_coordinator_fills_the_disk_with_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approvals, "_STUDIES_KEPT", 3)
    decide(tmp_path, KEY, STUDY, APPROVED, at=NOW)
    for i, file in enumerate((tmp_path / STUDIES).iterdir()):
        os.utime(file, (i, i))
    for seed in range(10, 20):
        remember_study(tmp_path, make_study({"seed": seed}))
    assert len(asked_studies(tmp_path)) == 4
    assert digest(STUDY) in asked_studies(tmp_path)
    long = make_study({"strategy": {"arguments": {"x": "x" * 2**20}}})
    with pytest.raises(NotApprovedError, match="must be of at most"):
        remember_study(tmp_path, long)


def test_the_latest_approval_is_what_a_new_study_is_compared_with(tmp_path: Path) -> None:
    second, third = make_study({"seed": 2}), make_study({"seed": 3})
    assert latest_approved(tmp_path, PUBLIC) is None
    decide(tmp_path, KEY, second, APPROVED, at=NOW)
    decide(tmp_path, KEY, STUDY, APPROVED, at=NOW - timedelta(days=1))
    decide(tmp_path, KEY, third, REFUSED, at=NOW + timedelta(days=1))
    assert latest_approved(tmp_path, PUBLIC) == second


def test_a_new_key_starts_anew(tmp_path: Path) -> None:
    make_keys(tmp_path)
    old: PrivateKey = own_key(tmp_path)
    decide(tmp_path, old, STUDY, APPROVED, at=NOW)
    make_keys(tmp_path, anew=True)
    new = own_key(tmp_path)
    assert latest_approved(tmp_path, new.public_key()) is None
    with pytest.raises(NotApprovedError, match="Unless the key was made anew"):
        accept(tmp_path, new.public_key(), make_task(), NOW)
    decide(tmp_path, new, STUDY, APPROVED, at=NOW)
    accept(tmp_path, new.public_key(), make_task(), NOW)
