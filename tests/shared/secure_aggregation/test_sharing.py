"""Do t shares give the secret, and fewer or wrong ones an error? And do keys agree, and sealed shares stay sealed?"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import SecAgg
from shared.errors import MessageError
from shared.secure_aggregation import keys
from shared.secure_aggregation.sharing import combine, split, threshold

SECRET = bytes(range(16))


def shares_of(needed: int, holders: int) -> dict[int, str]:
    return {place: share.hex() for place, share in enumerate(split(SECRET, needed, holders), start=1)}


@pytest.mark.parametrize(("needed", "holders"), [(2, 2), (2, 3), (3, 4), (4, 5)])
def test_any_t_shares_give_the_secret_and_fewer_do_not(needed: int, holders: int) -> None:
    shares = shares_of(needed, holders)
    for places in itertools.combinations(shares, needed):
        some = {place: shares[place] for place in places}
        assert combine(some, needed, SECRET.__eq__, "north") == SECRET
        some.popitem()
        with pytest.raises(MessageError, match=rf"shares of north must be >= {needed}, got {needed - 1}"):
            combine(some, needed, SECRET.__eq__, "north")
        if len(some) > 1:
            with pytest.raises(MessageError, match="must give the secret that it advertised"):
                combine(some, needed - 1, SECRET.__eq__, "north")


def test_wrong_share_is_found() -> None:
    shares = shares_of(3, 4)
    shares[2] = bytes(16).hex()
    with pytest.raises(MessageError, match="shares of north must give the secret that it advertised"):
        combine(shares, 3, SECRET.__eq__, "north")
    shares[2] = "00"
    with pytest.raises(MessageError, match="share of north must be 32 hexadecimal digits"):
        combine(shares, 3, SECRET.__eq__, "north")


@given(st.integers(2, 60), st.floats(0, 0.49), st.integers(2, 5))
def test_threshold_lets_so_many_vanish_and_never_half(sites: int, dropouts: float, fewest: int) -> None:
    needed = threshold(sites, SecAgg(dropouts=dropouts, fewest=fewest))
    assert 2 * needed > sites
    assert needed >= fewest
    assert needed in (sites - int(sites * dropouts + 1e-9), sites // 2 + 1, fewest)


@pytest.mark.parametrize("sites", range(4, 40))
def test_any_third_may_vanish_by_default(sites: int) -> None:
    assert threshold(sites, SecAgg()) == sites - sites // 3


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
@settings(max_examples=10)
def test_both_sides_of_a_pair_have_one_mask(a: bytes, b: bytes) -> None:
    assert keys.pair_mask_key(a, keys.public_key(b)) == keys.pair_mask_key(b, keys.public_key(a))
    assert keys.self_mask_key(a) != keys.pair_mask_key(a, keys.public_key(b))


def test_sealed_share_is_for_one_receiver_and_one_sum() -> None:
    north, south, west = (keys.new_seed() for _ in range(3))
    sealed = keys.seal(north, keys.public_key(south), b"share", b"sum 1")
    assert keys.unseal(south, keys.public_key(north), sealed, b"sum 1") == b"share"
    assert b"share" not in sealed
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for seed, peer, text, bound in (
        (south, north, sealed, b"sum 2"),
        (south, west, sealed, b"sum 1"),
        (west, north, sealed, b"sum 1"),
        (south, north, changed, b"sum 1"),
        (south, north, b"", b"sum 1"),
    ):
        with pytest.raises(MessageError, match="sealed share must be of this sum, by the site that it names"):
            keys.unseal(seed, keys.public_key(peer), text, bound)


def test_key_of_low_order_is_refused() -> None:
    with pytest.raises(MessageError, match="public key of a peer must be a key on X25519"):
        keys.pair_mask_key(keys.new_seed(), bytes(32))
