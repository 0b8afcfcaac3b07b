"""Does every OCT get its own infrared scan or none, whatever the order?"""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from client.ingest.pairing import Candidate, pair

SECOND_US = 1_000_000


def scan(name: str, modality: str, second: float = 0, **changes: object) -> Candidate:
    called, second_us = name if modality == "IR" else None, round(second * SECOND_US)
    made = Candidate(name, 1, "R", "A", modality, second_us, called, is_central=True, is_named=False)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_two_scans_at_one_time_are_a_pair() -> None:
    assert pair([scan("o", "OCT"), scan("i", "IR", 60)], 60) == {"o": "i"}
    assert pair([scan("o", "OCT"), scan("i", "IR", 60.001)], 60) == {}


def test_only_scans_of_one_eye_and_device_are_paired_by_time() -> None:
    for other in ({"subject_id": 2}, {"eye": "L"}, {"device": "B"}, {"device": ""}):
        assert pair([scan("o", "OCT"), scan("i", "IR", **other)], 60) == {}


def test_what_could_be_meant_in_two_ways_stays_unpaired() -> None:
    first, second, infrared = scan("o", "OCT"), scan("p", "OCT", 90), scan("i", "IR", 50)
    assert pair([first, second, infrared], 60) == {}
    assert pair([scan("o", "OCT"), scan("i", "IR", -1), scan("j", "IR", 30)], 60) == {}
    assert pair([first, second, infrared], 45) == {"p": "i"}


def test_a_named_partner_is_taken_at_any_distance_and_before_a_nearer_one() -> None:
    far, near = scan("i", "IR", 9000), scan("j", "IR", 1)
    assert pair([scan("o", "OCT", partner="i"), far, near], 60) == {"o": "i"}


def test_a_named_partner_that_is_absent_or_of_another_eye_is_not_replaced_by_a_guess() -> None:
    near = scan("j", "IR", 1)
    assert pair([scan("o", "OCT", partner="i"), near], 60) == {}
    assert pair([scan("o", "OCT", partner="i"), near, scan("i", "IR", eye="L")], 60) == {}
    assert pair([scan("o", "OCT", partner="i"), near, scan("i", "IR", subject_id=2)], 60) == {}
    assert pair([scan("o", "OCT", partner="p"), near, scan("p", "OCT", 900)], 60) == {}


def test_a_scan_that_is_named_is_not_given_away_by_time() -> None:
    assert pair([scan("o", "OCT", 900, partner="i"), scan("p", "OCT"), scan("i", "IR", is_named=True)], 60) == {
        "o": "i"
    }
    assert pair([scan("p", "OCT"), scan("i", "IR", is_named=True)], 60) == {}  # by an OCT of another patient


def test_a_name_of_two_infrared_scans_names_neither() -> None:
    one, two = (scan(name, "IR", partner="pair", is_named=True) for name in "ij")
    assert pair([scan("o", "OCT", partner="pair"), one], 60) == {"o": "i"}
    assert pair([scan("o", "OCT", partner="pair"), one, two], 60) == {}


def test_of_several_that_name_one_scan_the_nearest_has_it() -> None:
    several = [scan("o", "OCT", 30, partner="i"), scan("p", "OCT", 20, partner="i"), scan("i", "IR")]
    assert pair(several, 60) == {"p": "i"}


def test_of_a_volume_the_central_scan_is_paired() -> None:
    volume = [scan(name, "OCT", partner=partner, is_central=name == "b") for name in "abc" for partner in (None,)]
    assert pair([*volume, scan("i", "IR")], 60) == {"b": "i"}
    named = [replace(item, partner="i") for item in volume]
    assert pair([*named, scan("i", "IR")], 60) == {"b": "i"}


@st.composite
def visits(draw: st.DrawFn) -> list[Candidate]:
    """Up to a dozen scans of few patients within few minutes, some with a named partner."""
    count = draw(st.integers(0, 12))
    names = [f"s{number}" for number in range(count)]
    scans = [
        Candidate(
            image_id=name,
            subject_id=draw(st.integers(1, 2)),
            eye=draw(st.sampled_from("RL")),
            device=draw(st.sampled_from(["A", ""])),
            modality=draw(st.sampled_from(["OCT", "IR"])),
            acquired_us=draw(st.integers(0, 10)) * 20 * SECOND_US,
            partner=None,
            is_central=draw(st.booleans()),
            is_named=False,
        )
        for name in names
    ]
    for place, item in enumerate(scans):
        called = [item.image_id, item.image_id, "twice"] if item.modality == "IR" else [None, None, *names, "twice"]
        scans[place] = replace(item, partner=draw(st.sampled_from(called)))
    named = {item.partner for item in scans if item.modality == "OCT"}
    return [replace(item, is_named=item.image_id in named) for item in scans]


@given(visits(), st.integers(0, 90), st.randoms(use_true_random=False))
def test_pairs_do_not_depend_on_the_order_and_are_of_one_eye(
    scans: list[Candidate], within_s: int, dice: random.Random
) -> None:
    pairs = pair(scans, within_s)
    assert len(set(pairs.values())) == len(pairs)
    by_name = {item.image_id: item for item in scans}
    for oct_id, ir_id in pairs.items():
        oct_scan, ir_scan = by_name[oct_id], by_name[ir_id]
        assert (oct_scan.modality, ir_scan.modality, oct_scan.is_central) == ("OCT", "IR", True)
        assert (oct_scan.subject_id, oct_scan.eye) == (ir_scan.subject_id, ir_scan.eye)
        assert oct_scan.partner in (None, ir_scan.partner)
    shuffled = list(scans)
    dice.shuffle(shuffled)
    assert pair(shuffled, within_s) == pairs


@given(visits(), st.integers(0, 90))
def test_pairs_by_time_are_those_of_a_count_over_all_scans(scans: list[Candidate], within_s: int) -> None:
    """An independent reference: both have no other within reach."""

    def reach(one: Candidate, modality: str) -> list[str]:
        return [
            other.image_id
            for other in free
            if other.modality == modality
            and (other.subject_id, other.eye, other.device) == (one.subject_id, one.eye, one.device)
            and abs(other.acquired_us - one.acquired_us) <= within_s * SECOND_US
        ]

    scans = [replace(item, partner=None if item.modality == "OCT" else item.image_id, is_named=False) for item in scans]
    free = [item for item in scans if item.modality == "IR" or item.is_central]
    expected = {
        one.image_id: other.image_id
        for one in free
        for other in free
        if (one.modality, other.modality) == ("OCT", "IR")
        and reach(one, "IR") == [other.image_id]
        and reach(other, "OCT") == [one.image_id]
    }
    assert pair(scans, within_s) == expected
