"""How does a coordinator make one sum that it cannot look into? Four steps, of which it only carries the messages.

Bonawitz et al., CCS 2017, figure 4: keys, shares, masked vectors, unmasking. The parts are added as they come, so that
memory holds one of them and the sum.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from flwr.app import Message

from server.sites import Answer, Collected, Decode, Sites
from shared.config import SecAgg
from shared.errors import MessageError
from shared.messages import decode_masked, decode_step_reply
from shared.secure_aggregation import keys
from shared.secure_aggregation.masking import MaskKey, Vector, add_masks
from shared.secure_aggregation.sharing import combine, threshold
from shared.secure_aggregation.steps import Advert, Advertise, Mask, Opened, Sealed, Share, Step, Unmask

MessageFor = Callable[[int, Step], Message]  # asks a node for a step of a sum
Roster = tuple[Advert, ...]
A = TypeVar("A", bound=Answer)


@dataclass
class Summed:
    """A sum, the sites whose parts are in it, and one of the replies that brought them, emptied."""

    vector: Vector
    survivors: tuple[str, ...] = ()
    reply: Message | None = None


@dataclass(frozen=True)
class Added:
    """A site whose part went into the sum."""

    site: str


def new_session() -> str:
    """A name that no other sum has."""
    return secrets.token_hex(16)


def take_advert(message: Message) -> Advert:
    """The keys of a site; raises ``MessageError``."""
    return decode_step_reply(Advert, message.content)


@dataclass(frozen=True)
class SecureSum:
    """One sum over some sites.

    Args:
        wait_s: for the answers to each step.
        start: digest of what each site's work begins with.
        examples: of the whole federation at most, by its survey.
        failed, silent: filled with who was left out, as in ``Collected``.
    """

    sites: Sites
    setting: SecAgg
    stage: str
    wait_s: float
    session: str
    message_for: MessageFor
    start: str
    examples: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)

    def adverts(self, nodes: Sequence[int]) -> Collected[Advert]:
        """New keys of the sites behind some nodes, with which a sum begins."""
        step = Advertise(self.session)
        return self.sites.ask(
            lambda: [self.message_for(node, step) for node in nodes], take_advert, self.stage, self.wait_s
        )

    def of(self, adverts: Mapping[str, Advert], words: int, sums: int) -> Summed:
        """Make the sum of vectors of these lengths.

        Raises:
            MessageError: too few sites are left, or what they sent does not fit together.
        """
        roster = tuple(advert for _, advert in sorted(adverts.items()))
        needed = threshold(len(roster), self.setting)
        self._check_enough(len(roster), needed)
        sealed = self._shares(roster)
        self._check_enough(len(sealed), needed)
        summed = self._masked(sealed, words, sums)
        self._check_enough(len(summed.survivors), needed)
        opened = self._opened(summed.survivors)
        add_masks(summed.vector, masks_left(roster, sealed, summed.survivors, opened, needed))
        return summed

    # The steps

    def _shares(self, roster: Roster) -> dict[str, Sealed]:
        names = {advert.site for advert in roster}

        def take(message: Message) -> Sealed:
            sealed = decode_step_reply(Sealed, message.content)
            if sealed.shares.keys() != names - {sealed.site}:
                raise MessageError("sealed shares", "must be one for each other site of the sum")
            return sealed

        return self._counted(
            self._ask(dict.fromkeys(names, Share(self.session, roster, self.start, self.examples)), take)
        )

    def _masked(self, sealed: Mapping[str, Sealed], words: int, sums: int) -> Summed:
        summed, nodes = Summed(Vector.zeros(words, sums)), self.sites.names

        def take(message: Message) -> Added:
            masked = decode_masked(message.content, summed.vector)
            # The part goes into the sum at once: nothing may be found wrong with it afterwards.
            if nodes.get(message.metadata.src_node_id) != masked.site or masked.site in summed.survivors:
                raise MessageError("masked vector", "must be of the site that was asked, once", value=masked.site)
            summed.vector.add(masked.vector)
            summed.survivors = tuple(sorted((*summed.survivors, masked.site)))
            summed.reply = message
            return Added(masked.site)

        self._counted(self._ask({site: self._mask(site, sealed) for site in sealed}, take))
        return summed

    def _mask(self, site: str, sealed: Mapping[str, Sealed]) -> Mask:
        shares = {maker: one.shares[site] for maker, one in sealed.items() if maker != site}
        return Mask(self.session, shares)

    def _opened(self, survivors: tuple[str, ...]) -> dict[str, Opened]:
        """Who vanishes here is in the sum all the same."""

        def take(message: Message) -> Opened:
            return decode_step_reply(Opened, message.content)

        return self._ask(dict.fromkeys(survivors, Unmask(self.session, survivors)), take).answers

    def _ask(self, steps: Mapping[str, Step], take: Decode[A]) -> Collected[A]:
        nodes = {name: node for node, name in self.sites.names.items()}
        there = [(nodes[site], step) for site, step in sorted(steps.items()) if site in nodes]
        return self.sites.ask(
            lambda: [self.message_for(node, step) for node, step in there], take, self.stage, self.wait_s
        )

    def _counted(self, found: Collected[A]) -> dict[str, A]:
        self.failed.update(found.failed)
        self.silent.update(found.silent)
        return found.answers

    def _check_enough(self, sites: int, needed: int) -> None:
        if sites < needed:
            rule = f"must be >= {needed} to be unmasked (secure_aggregation.dropouts, fewest)"
            raise MessageError("sites of the sum", rule, value=sites)


def masks_left(
    roster: Roster,
    sharers: Container[str],
    survivors: tuple[str, ...],
    opened: Mapping[str, Opened],
    needed: int,
) -> list[MaskKey]:
    """What to add to a sum so that no mask is left: against the survivors' own, and those towards who is gone.

    Raises:
        MessageError: too few shares of a secret, or wrong ones.
    """
    places = {advert.site: place for place, advert in enumerate(roster, start=1)}
    masks = []
    for advert in roster:
        site = advert.site
        if site in survivors:
            shares = {places[name]: one.self_shares[site] for name, one in opened.items() if site in one.self_shares}
            seed = combine(shares, needed, partial(_is_committed, advert), site)
            masks.append(MaskKey(keys.self_mask_key(seed), subtract=True))
        elif site in sharers:
            shares = {places[name]: one.mask_shares[site] for name, one in opened.items() if site in one.mask_shares}
            seed = combine(shares, needed, partial(_is_published, advert), site)
            masks += [_mask_towards(seed, site, peer) for peer in roster if peer.site in survivors]
    return masks


def _mask_towards(seed: bytes, gone: str, survivor: Advert) -> MaskKey:
    """The mask that a site that is gone would have added towards a survivor."""
    peer = keys.key_from_hex(survivor.mask_key, f"mask key of {survivor.site}")
    return MaskKey(keys.pair_mask_key(seed, peer), subtract=survivor.site < gone)


def _is_committed(advert: Advert, seed: bytes) -> bool:
    return keys.commitment(seed).hex() == advert.commitment


def _is_published(advert: Advert, seed: bytes) -> bool:
    return keys.public_key(seed).hex() == advert.mask_key
