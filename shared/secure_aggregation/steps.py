"""What do coordinator and sites say to each other to make one sum? Four steps, each a question and an answer.

The values are plain trees (``shared.knobs``): unknown names and wrong types are refused when they are read. Keys,
shares and ciphertexts are hexadecimal digits; names are those of sites.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from shared.knobs import from_json, knob, to_json
from shared.statistics import Statistics
from shared.weights import Weights, hash_weights


@dataclass(frozen=True)
class Advertise:
    """Make new keys for one sum. The answer is an ``Advert``."""

    session: str = knob(help="name of the sum, never used before")
    kind: str = knob("advertise", choices=["advertise"])


@dataclass(frozen=True)
class Advert:
    """What a site publishes for one sum."""

    site: str = knob(help="its name")
    mask_key: str = knob(help="public key (X25519) from which pairwise masks follow")
    sealing_key: str = knob(help="public key (X25519) for shares that the coordinator carries")
    commitment: str = knob(help="SHA-256 by which the seed of its own mask is known again")
    identity: str = knob("", "PEM of the site's long-term key; nothing in a simulation")
    signature: str = knob("", "over all of this, the study, the session and the phase")

    def content(self, context: str) -> bytes:
        """What the signature is over."""
        return b"fedretina sum 1\n" + context.encode() + b"\n" + to_json(replace(self, signature="")).encode()


@dataclass(frozen=True)
class Share:
    """Share your secrets among these sites. The answer is ``Sealed``."""

    session: str = knob(help="name of the sum")
    roster: tuple[Advert, ...] = knob(help="the sites of the sum, in the order of their names")
    start: str = knob(help="digest of what each site's work begins with: all are told the same, or none can unmask")
    examples: int = knob(0, "training examples of the whole federation at most, by its survey", ge=0)
    kind: str = knob("share", choices=["share"])


@dataclass(frozen=True)
class Sealed:
    """Shares that a site made, each for one other site's eyes only."""

    site: str = knob(help="who made them")
    shares: dict[str, str] = knob(help="ciphertext by receiver")


@dataclass(frozen=True)
class Mask:
    """Do the task and send your part of the sum, masked towards all sites that shared."""

    session: str = knob(help="name of the sum")
    shares: dict[str, str] = knob(help="ciphertext by the site that made it")
    kind: str = knob("mask", choices=["mask"])


@dataclass(frozen=True)
class Unmask:
    """These sites' parts are in the sum. The answer is ``Opened``."""

    session: str = knob(help="name of the sum")
    survivors: tuple[str, ...] = knob(help="sites, in the order of their names")
    kind: str = knob("unmask", choices=["unmask"])


@dataclass(frozen=True)
class Opened:
    """Shares that a site held: of one secret of each other site, never of both."""

    site: str = knob(help="who held them")
    self_shares: dict[str, str] = knob(help="by survivor: of the seed of its own mask")
    mask_shares: dict[str, str] = knob(help="by site that is gone: of the seed of its mask key")


Step = Advertise | Share | Mask | Unmask


@dataclass(frozen=True)
class _Wrapped:
    step: Step = knob(help="one of the four")


def step_to_json(step: Step) -> str:
    """A step as text."""
    return to_json(_Wrapped(step))


def step_from_json(text: str) -> Step:
    """The inverse of ``step_to_json``; raises ``ConfigError``."""
    return from_json(_Wrapped, text).step


def start_digest(weights: Weights, statistics: Statistics | None, rounds: int) -> str:
    """SHA-256 of what a task brings along besides the study."""
    found = hashlib.sha256(f"{'' if statistics is None else to_json(statistics)}\0{rounds}\0".encode())
    hash_weights(found, weights)
    return found.hexdigest()


def digest_of(roster: tuple[Advert, ...]) -> bytes:
    """What sites that speak of the same keys agree on."""
    return hashlib.sha256("\n".join(map(to_json, roster)).encode()).digest()
