"""How is a secret split so that t sites together know it, and fewer know nothing? Shamir (CACM 1979), in GF(2**128)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from Crypto.Protocol.SecretSharing import Shamir

from shared.config import SecAgg
from shared.errors import MessageError
from shared.secure_aggregation.keys import SEED_BYTES, from_hex


def threshold(sites: int, setting: SecAgg) -> int:
    """Sites of a sum without which it cannot be unmasked.

    More than half of them, so that a coordinator that tells some sites that a peer is gone, and others that it is not,
    has not enough shares of both its secrets (Bonawitz et al., section 6.2).
    """
    vanish = int(sites * setting.dropouts + 1e-9)
    return max(sites - vanish, sites // 2 + 1, setting.fewest)


def split(secret: bytes, needed: int, holders: int) -> list[bytes]:
    """Shares of a secret of 16 bytes, one a holder, in the order of the holders."""
    return [share for _, share in sorted(Shamir.split(needed, holders, secret, ssss=False))]


def combine(shares: Mapping[int, str], needed: int, is_right: Callable[[bytes], bool], name: str) -> bytes:
    """The secret that some holders have shares of.

    Args:
        shares: hexadecimal, by the place of the holder, from 1 on.
        is_right: tells whether this is the secret: a wrong share gives another one, without a sign of it.

    Raises:
        MessageError: fewer shares than needed, one that is not a share, or another secret.
    """
    if len(shares) < needed:
        raise MessageError(f"shares of {name}", f"must be >= {needed}", value=len(shares))
    some = sorted(shares.items())[:needed]
    parts = [(place, from_hex(share, SEED_BYTES, f"share of {name}")) for place, share in some]
    secret: bytes = Shamir.combine(parts, ssss=False)
    if not is_right(secret):
        raise MessageError(f"shares of {name}", "must give the secret that it advertised")
    return secret
