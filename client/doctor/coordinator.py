"""Can the site speak with its coordinator? Its kit, and one connection by it, which registers nothing."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import yaml

from client.doctor.finding import Finding, fail, ok, warn
from client.membership import KIT, PRIVATE_KEY, own_key, read_membership
from shared.errors import FedretinaError
from shared.kit import Kit

TIMEOUT_S = 5.0
_SOON = timedelta(days=14)
_EARLY_S, _LATE_S = (
    5.0,
    300.0,
)  # by which a site's clock may be ahead or behind: Flower's, as client/connection.py has it
_NEW_KIT = "Ask the coordinator to enrol the site again, then: fedretina site join KIT."


@dataclass(frozen=True)
class Answer:
    """What came of one connection.

    Attributes:
        problem: why there is no answer; "" when there is one.
        date: the coordinator's clock, where it told.
        distrusted: it answered, with a certificate that is not of the kit's authority.
    """

    problem: str = ""
    date: datetime | None = None
    distrusted: bool = False


def membership_findings(folder: Path, name: str, now: datetime) -> Iterator[Finding]:
    """Key and kit; a site that has not joined yet is well.

    Args:
        name: of the site, as ``dataset.yaml`` has it.
    """
    if not (folder / PRIVATE_KEY).exists() and not (folder / KIT).exists():
        yield ok("membership", "of no federation; fedretina site keys is the first step to one")
        return
    try:
        if not (folder / KIT).exists():
            own_key(folder)
            yield ok("membership", "a key, and no kit yet: fedretina site join KIT comes next")
            return
        kit = read_membership(folder).kit
    except FedretinaError as error:
        yield fail("membership", f"{Path(error.name).name} {error.rule}", error.remedy or _NEW_KIT)
        return
    yield from _kit_findings(kit, name, now)


def _kit_findings(kit: Kit, name: str, now: datetime) -> Iterator[Finding]:
    left = datetime.fromisoformat(kit.expires_at) - now
    if kit.site != name:
        fix = "Put the enrolled name into dataset.yaml, or ask the coordinator to enrol the site by its own."
        yield fail("membership", f"the kit is for {kit.site!r}, the folder is of {name!r}", fix)
    elif left <= timedelta(0):
        yield fail("membership", f"the kit expired on {kit.expires_at[:10]}", _NEW_KIT)
    elif left <= _SOON:
        yield warn("membership", f"the kit expires on {kit.expires_at[:10]}", _NEW_KIT)
    else:
        yield ok("membership", f"of {kit.address} until {kit.expires_at[:10]}")


def coordinator_findings(address: str, answer: Answer, now: datetime) -> Iterator[Finding]:
    """What one connection told, and this machine's clock against the coordinator's."""
    if answer.distrusted:
        fix = "Compare the fingerprint of its authority with the coordinator, and join by a new kit."
        yield fail("coordinator", f"{address} shows a certificate that the kit does not know", fix)
        return
    if answer.problem:
        fix = f"Let this machine connect to {address} (TCP, outbound); ask the coordinator whether it serves."
        yield fail("coordinator", f"{address} does not answer: {answer.problem}", fix)
        return
    yield ok("coordinator", f"{address} answers, by the kit's certificate")
    if answer.date is not None:
        ahead_s = (now - answer.date).total_seconds()
        if -_LATE_S <= ahead_s <= _EARLY_S:
            yield ok("clock against coordinator", "agrees")
        else:
            fix = "Set the clock; a time service such as chrony keeps it."
            yield fail("clock against coordinator", f"{ahead_s:+.0f} s", fix)


def ask(address: str, authority: str, timeout_s: float = TIMEOUT_S) -> Answer:
    """Connect once and ask for nothing, for as long as ``timeout_s`` in all, names and handshake included."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(address, authority, timeout_s)), daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answers[0] if answers else Answer(f"no answer within {timeout_s:g} s")


def _ask(address: str, authority: str, timeout_s: float) -> Answer:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")  # of an IPv6 address
    try:
        context = ssl.create_default_context(cadata=authority)
        with (
            socket.create_connection((host, int(port)), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as stream,
        ):
            stream.sendall(f"HEAD / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            return Answer(date=_date(stream.recv(16384)))
    except ssl.SSLCertVerificationError:
        return Answer(distrusted=True)
    except (OSError, ValueError, OverflowError) as error:
        return Answer(type(error).__name__)


def _site_name(folder: Path) -> str:
    """As ``dataset.yaml`` has it; the contract's check tells where it cannot be read."""
    try:
        data = yaml.safe_load((folder / "dataset.yaml").read_text(encoding="utf-8"))
        return str(data["site"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return ""


def _date(head: bytes) -> datetime | None:
    for line in head.decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        if name.lower() == "date":
            try:
                date = parsedate_to_datetime(value.strip())
            except ValueError:
                return None
            return date if date.tzinfo else date.replace(tzinfo=UTC)
    return None


def look(folder: Path, ask: Callable[[str, str], Answer] = ask) -> Iterator[Finding]:
    """Kit and coordinator of a site."""
    yield from membership_findings(folder, _site_name(folder), datetime.now(UTC))
    try:
        kit = read_membership(folder).kit
    except FedretinaError:
        return
    answer = ask(kit.address, kit.authority)
    yield from coordinator_findings(kit.address, answer, datetime.now(UTC))
