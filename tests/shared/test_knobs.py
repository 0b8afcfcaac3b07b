"""Is every tree of settings read as declared, refused otherwise, and written back without loss?"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.knobs import digest, dump, from_json, knob, load, to_json


@dataclass(frozen=True)
class Left:
    kind: str = knob("left", choices=["left"])
    x: int = knob(1, ge=0)


@dataclass(frozen=True)
class Right:
    kind: str = knob("right", choices=["right"])
    y: float = knob(0.5, ge=0.0, lt=1.0)


@dataclass(frozen=True)
class Whole:
    needed: str = knob(help="has no default")
    count: int = knob(3, unit="pixels", ge=1, le=10)
    share: float = knob(0.5, gt=0.0, le=1.0)
    any_float: float = knob(0.0)
    flag: bool = knob(False)
    colour: str = knob("red", choices=["red", "green"])
    widths: tuple[int, ...] = knob((1, 2), ge=1)
    extra: dict[str, object] = knob({})
    units: dict[str, str] = knob({})
    side: Left | Right = knob(Left())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
finite_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
wholes = st.builds(
    Whole,
    needed=st.text(),
    count=st.integers(1, 10),
    share=st.floats(0.0, 1.0, exclude_min=True),
    any_float=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    colour=st.sampled_from(["red", "green"]),
    widths=st.lists(st.integers(1, 2**40)).map(tuple),
    extra=st.dictionaries(st.text(), finite_json, max_size=3),
    units=st.dictionaries(st.text(), st.text(), max_size=3),
    side=st.builds(Left, x=st.integers(0)) | st.builds(Right, y=st.floats(0.0, 1.0, exclude_max=True)),
)


@given(wholes)
def test_reading_what_was_written_is_the_identity(tree: Whole) -> None:
    assert from_json(Whole, to_json(tree)) == tree
    assert load(Whole, dump(tree)) == tree


@given(wholes)
def test_the_digest_survives_the_round_trip(tree: Whole) -> None:
    assert digest(from_json(Whole, to_json(tree))) == digest(tree)


@given(wholes, wholes)
def test_digests_are_equal_exactly_for_equal_trees(a: Whole, b: Whole) -> None:
    assert (digest(a) == digest(b)) == (to_json(a) == to_json(b))


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    a = load(Whole, {"needed": "n", "extra": {"a": 1, "b": 2}, "count": 2})
    b = load(Whole, {"count": 2, "extra": {"b": 2, "a": 1}, "needed": "n"})
    assert digest(a) == digest(b)


@pytest.mark.parametrize("change", [{"count": 4}, {"flag": True}, {"widths": (1,)}, {"side": Right()}, {"needed": "m"}])
def test_every_change_changes_the_digest(change: dict[str, Any]) -> None:
    assert digest(replace(Whole("n"), **change)) != digest(Whole("n"))


def test_absent_keys_take_their_defaults() -> None:
    assert load(Whole, {"needed": "n"}) == Whole("n")


def test_a_knob_without_default_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"^needed must be given$"):
        load(Whole, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cuont": 3}, "cuont is not a setting. Did you mean count?"),
        ({"zzz": 3}, "zzz is not a setting. Known here: needed, count"),
        ({"count": 0}, "count must be >= 1 pixels, got 0"),
        ({"count": 11}, "count must be <= 10 pixels, got 11"),
        ({"count": 3.0}, "count must be of type int, got 3.0"),
        ({"count": True}, "count must be of type int, got True"),
        ({"count": "3"}, "count must be of type int, got '3'"),
        ({"count": None}, "count must be of type int"),
        ({"share": 0.0}, "share must be > 0.0, got 0.0"),
        ({"share": True}, "share must be of type float, got True"),
        ({"share": float("nan")}, "share must be"),
        ({"any_float": float("nan")}, "any_float must be"),
        ({"any_float": float("inf")}, "any_float must be"),
        ({"any_float": 10**400}, "any_float must be"),
        ({"flag": 1}, "flag must be of type bool, got 1"),
        ({"flag": "true"}, "flag must be of type bool, got 'true'"),
        ({"colour": "gren"}, "colour must be one of red, green, got 'gren'. Did you mean green?"),
        ({"widths": 3}, "widths must be a list, got 3"),
        ({"widths": "123"}, "widths must be a list, got '123'"),
        ({"widths": [1, "2"]}, "widths[1] must be of type int, got '2'"),
        ({"widths": [1, 0]}, "widths must be >= 1, got 0"),
        ({"extra": [1]}, "extra must be a mapping with names as keys, got [1]"),
        ({"extra": {1: 2}}, "extra must be a mapping with names as keys"),
        ({"extra": {"a": float("inf")}}, "extra"),
        ({"units": {"a": 3}}, "units.a must be of type str, got 3"),
        ({"side": {"x": 1}}, "side.kind must be one of left, right"),
        ({"side": {"kind": "up"}}, "side.kind must be one of left, right, got 'up'"),
        ({"side": {"kind": []}}, "side.kind must be one of left, right"),
        ({"side": {"kind": "left", "y": 0.1}}, "side.y is not a setting"),
        ({"side": {"kind": "right", "y": 1.0}}, "side.y must be < 1.0, got 1.0"),
        ({"side": 3}, "side.kind must be one of left, right"),
    ],
)
def test_a_faulty_setting_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Whole, {"needed": "n", **change})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_tagged_union_reads_the_tree_that_its_kind_names() -> None:
    assert load(Whole, {"needed": "n", "side": {"kind": "right", "y": 0.25}}).side == Right(y=0.25)


def test_whole_numbers_serve_as_floats_and_give_the_same_digest() -> None:
    assert digest(load(Whole, {"needed": "n", "share": 1})) == digest(load(Whole, {"needed": "n", "share": 1.0}))


@given(st.text())
def test_any_text_is_a_tree_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        from_json(Whole, text)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000, '{"count":' + "9" * 5000 + "}", '"x"'])
def test_text_that_is_no_tree_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        from_json(Whole, text)


@given(st.sampled_from(sorted(Whole.__dataclass_fields__)), json_values)
def test_any_value_anywhere_is_read_exactly_or_refused(name: str, value: object) -> None:
    with contextlib.suppress(ConfigError):
        tree = from_json(Whole, json.dumps({"needed": "n", name: value}))
        assert from_json(Whole, to_json(tree)) == tree


def test_a_loaded_tree_does_not_share_the_mappings_it_was_made_of() -> None:
    extra: dict[str, Any] = {"a": 1}
    tree = load(Whole, {"needed": "n", "extra": extra})
    extra["a"] = 2
    assert tree.extra == {"a": 1}
