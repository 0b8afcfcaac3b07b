"""Which sites are there, how long are they waited for, and what do they answer?"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from server.state import RoundRecord
from shared.config import Strategy
from shared.errors import FedretinaError, MessageError
from shared.memory import give_back
from shared.messages import AWAITS_APPROVAL, size_of

_POLL_S = 0.1
_LOOK_S = 2.0  # between two looks at who is connected
_ASK_AGAIN_S = 5.0  # a site that has not approved yet
_SHORTEST_WAIT_S = 30.0  # what a site needs to be started again
_REASON_LENGTH = 300

log = logging.getLogger(__name__)


class StudyError(FedretinaError):
    """A study that cannot go on: too few sites answered."""


class Answer(Protocol):
    """What is decoded of a reply."""

    @property
    def site(self) -> str:
        """The name that the site states."""
        ...


T = TypeVar("T", bound=Answer)
Decode = Callable[[Message], T]
Names = Callable[[], Mapping[int, str]]


@dataclass
class Collected(Generic[T]):
    """Answers by site; the reasons of those that are left out; and which of these did not answer at all.

    A sum over sites is one answer, and ``summed`` names the sites of which it is.
    """

    answers: dict[str, T] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    summed: tuple[str, ...] = ()

    @property
    def sites(self) -> list[str]:
        """Who took part, in order."""
        return sorted(self.summed or self.answers)

    def leave_out(self, stage: str, site: str, reason: str) -> None:
        """Note, and log at once, why a site has no part."""
        self.failed[site] = reason
        log.warning("%s: %s left out: %s", stage, site, reason)

    def check_enough(self, stage: str, minimum: int) -> None:
        """Raise ``StudyError`` when fewer sites answered."""
        if len(self.sites) < minimum:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in self.failed.items()) or "no site is connected"
            raise StudyError(
                f"{stage}: sites that took part", f"must be >= {minimum}", value=len(self.sites), remedy=reasons
            )


class Sites:
    """The sites behind a grid.

    Args:
        names: of nodes, as far as they are known from before.
        enrolled: names of the nodes that may connect; None where whoever is connected takes part and states its name.
        notice: is told in one line what is being waited for.
    """

    def __init__(
        self,
        grid: Grid,
        strategy: Strategy,
        names: Mapping[int, str],
        enrolled: Names | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.grid, self.strategy, self._enrolled, self._notice = grid, strategy, enrolled, notice
        self._names, self._told = dict(names), ""

    @property
    def names(self) -> dict[int, str]:
        """Of nodes, as enrolled or as stated by the sites."""
        return dict(self._names if self._enrolled is None else self._enrolled())

    def among(self, sites: Iterable[str]) -> Grid:
        """A grid with these sites only, in order of their names: what is sampled does not depend on node ids."""
        nodes = {name: node for node, name in self.names.items()}
        return _Chosen(self.grid, [nodes[site] for site in sorted(sites) if site in nodes])

    def gather(self, message_for: Callable[[int], Message], decode: Decode[T], stage: str) -> Collected[T]:
        """Ask every site to join: all that are connected, or, where sites are enrolled, all of those in good time.

        A site that has yet to approve is asked again until then.

        Raises:
            StudyError: fewer sites joined than the study needs to start.
        """
        found: Collected[T] = Collected()
        waiting: dict[str, int] = {}  # nodes by message
        again: dict[int, float] = {}  # when to ask
        undecided: dict[str, str] = {}
        network = self._enrolled is not None
        deadline = time.monotonic() + (self.strategy.gathering_timeout_s if network else self.strategy.round_timeout_s)
        while True:
            now, names = time.monotonic(), self.names
            connected = [node for node in self.grid.get_node_ids() if not network or node in names]
            ask = [n for n in connected if n not in waiting.values() and again.get(n, 0.0) <= now]
            if ask:
                sent = self.grid.push_messages([message_for(node) for node in ask])
                waiting |= {message_id: node for message_id, node in zip(sent, ask, strict=True) if message_id}
                again |= dict.fromkeys(ask, float("inf"))
            replied = self._replies(waiting)
            for node, reply in replied:
                name = names.get(node, f"node {node}")
                undecided.pop(name, None)
                if reply.has_error() and reply.error.code == AWAITS_APPROVAL and network:
                    undecided[name] = _reason(reply)
                    again[node] = now + _ASK_AGAIN_S
                else:
                    self._take(found, node, reply, decode, stage)
            absent = sorted(set(names.values()) - found.answers.keys() - found.failed.keys()) if network else []
            if (not waiting and not absent) or now >= deadline:
                break
            present = {names[node] for node in connected if node in names}
            self._tell([name for name in absent if name not in present and name not in undecided], undecided)
            if not replied:
                time.sleep(_POLL_S)
        for name, reason in undecided.items():  # it stands, though the site may just have been asked again
            found.leave_out(stage, name, reason)
        self._give_up(found, waiting, stage, self.strategy.round_timeout_s)
        for name in absent:
            if name not in found.failed:
                found.leave_out(stage, name, "not connected when the study began")
        found.check_enough(stage, max(self.strategy.minimum_sites, self.strategy.start_sites))
        return found

    def ask(self, make: Callable[[], Sequence[Message]], decode: Decode[T], stage: str, wait_s: float) -> Collected[T]:
        """Send messages and collect what is answered in time; each reply is decoded as it comes.

        What comes later is dropped.

        Args:
            make: the messages, which may hold a large model: here alone, so that it can be let go.
        """
        found: Collected[T] = Collected()
        messages = make()
        nodes = [message.metadata.dst_node_id for message in messages]
        waiting: dict[str, int] = {}
        for message_id, node in zip(self.grid.push_messages(messages), nodes, strict=True):
            if message_id:
                waiting[message_id] = node
            else:
                found.leave_out(stage, self._name(node), "no longer enrolled")
        size_bytes = max((size_of(message.content) for message in messages), default=0)
        del messages
        give_back(size_bytes)
        deadline, look = time.monotonic() + wait_s, time.monotonic() + _LOOK_S
        while waiting and time.monotonic() < deadline:
            replies = self._replies(waiting)
            for node, reply in replies:
                self._take(found, node, reply, decode, stage)
            if not replies:
                time.sleep(_POLL_S)
            if waiting and time.monotonic() >= look:
                connected, look = set(self.grid.get_node_ids()), time.monotonic() + _LOOK_S
                self._dismiss(found, waiting, stage)
                self._tell([self._name(node) for node in waiting.values() if node not in connected], ())
        self._give_up(found, waiting, stage, wait_s)
        return found

    def _replies(self, waiting: dict[str, int]) -> list[tuple[int, Message]]:
        """Replies that have come, whose messages are then no longer waited for."""
        replies = []
        for reply in self.grid.pull_messages(list(waiting)):
            # By message: an error that Flower itself makes does not name the node.
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                replies.append((node, reply))
        return replies

    def _take(self, found: Collected[T], node: int, reply: Message, decode: Decode[T], stage: str) -> None:
        name = self._name(node)
        if reply.has_error():
            found.leave_out(stage, name, _reason(reply))
            return
        try:
            answer = decode(reply)
            known = self.names.get(node)
            if known is not None and answer.site != known:
                raise MessageError("site", f"must be {known}, to whom the key belongs", value=answer.site)
            if known is None:
                name = answer.site
            if name in found.answers:
                raise MessageError(f"site {name}", "must be the name of one site only")
            self._names[node] = name
            found.answers[name] = answer
        except MessageError as error:
            found.leave_out(stage, name, str(error))

    def _dismiss(self, found: Collected[T], waiting: dict[str, int], stage: str) -> None:
        """Wait no longer for a site whose leave was taken, or has ended, during the round."""
        if self._enrolled is None:
            return
        enrolled = self.names
        for message_id in [message_id for message_id, node in waiting.items() if node not in enrolled]:
            found.leave_out(stage, self._name(waiting.pop(message_id)), "no longer enrolled")

    def _give_up(self, found: Collected[T], waiting: Mapping[str, int], stage: str, wait_s: float) -> None:
        """Wait no longer: who has not answered is left out, and what comes later is dropped."""
        self._tell((), ())
        forget = getattr(self.grid, "forget", None)  # only a network delivers late
        if forget is not None and waiting:
            forget(list(waiting))
        for name in map(self._name, waiting.values()):
            if name in found.failed:
                continue
            rule = f"must answer within {wait_s:g} s (strategy.round_timeout_s)"
            found.leave_out(stage, name, str(MessageError(name, rule)))
            found.silent.add(name)

    def _name(self, node: int) -> str:
        return self.names.get(node) or self._names.get(node, f"node {node}")

    def _tell(self, offline: Iterable[str], undecided: Iterable[str]) -> None:
        """Say what is waited for, when that has changed."""
        parts = []
        if names := ", ".join(sorted(offline)):
            parts.append(f"waiting for {names} to connect")
        if names := ", ".join(sorted(undecided)):
            parts.append(f"waiting for {names} to approve the study")
        text = "; ".join(parts)
        if text == self._told:
            return
        self._told = text
        if text:
            log.info("%s", text)
        self._notice(text)


def wait_of_round(records: Sequence[RoundRecord], stage: str, strategy: Strategy) -> float:
    """Seconds that a round may take: as configured, or learned from the stage's rounds in which all answered."""
    seconds = [record.seconds for record in records if record.stage == stage and not record.failed]
    if not strategy.patience or not seconds:
        return strategy.round_timeout_s
    learned = max(strategy.patience * statistics.median(seconds), _SHORTEST_WAIT_S)
    return min(learned, strategy.round_timeout_s)


def benched_sites(records: Sequence[RoundRecord], strategy: Strategy) -> set[str]:
    """The sites that are left out of the next round because they failed several in a row; later they are asked."""
    streaks: dict[str, int] = {}
    rests: dict[str, int] = {}
    for record in records:
        for site in [site for site, rest in rests.items() if rest]:
            rests[site] -= 1
        for site in record.sites:
            streaks[site] = 0
        for site in record.failed:
            streaks[site] = streaks.get(site, 0) + 1
            if streaks[site] == strategy.bench_after:
                streaks[site], rests[site] = 0, strategy.bench_rounds
    return {site for site, rest in rests.items() if rest}


def _reason(reply: Message) -> str:
    """What a site says went wrong, as one short line: it is shown to people."""
    text = " ".join((reply.error.reason or "no reason given").split())
    return "".join(c for c in text if c.isprintable())[:_REASON_LENGTH]


class _Chosen(Grid):
    """Some nodes of a grid, for a strategy to sample from."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        self._grid, self._nodes = grid, nodes

    @property
    def run(self) -> Run:
        return self._grid.run

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)
