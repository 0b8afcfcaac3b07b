"""Which sites may connect, and until when? The coordinator's list of keys, in one file."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from shared.errors import KeyFileError
from shared.files import write_atomic
from shared.keys import fingerprint, parse_public_key, public_pem

SITES = "sites.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Enrolment:
    """One site's leave to connect; times are ISO 8601 in UTC."""

    site: str
    public_key: str
    enrolled_at: str
    expires_at: str
    revoked_at: str = ""

    @property
    def fingerprint(self) -> str:
        """Of the site's key."""
        return fingerprint(parse_public_key(self.public_key.encode(), self.site))

    def is_valid(self, at: datetime) -> bool:
        """May the site connect at this time?"""
        return not self.revoked_at and at < datetime.fromisoformat(self.expires_at)


def read_enrolments(folder: Path) -> list[Enrolment]:
    """All enrolments, also those that ended; an empty list where none was made."""
    file = folder / SITES
    if not file.exists():
        return []
    return [Enrolment(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))]


def valid_enrolments(folder: Path, at: datetime | None = None) -> list[Enrolment]:
    """The enrolments of the sites that may connect now."""
    now = at or datetime.now(UTC)
    return [enrolment for enrolment in read_enrolments(folder) if enrolment.is_valid(now)]


def enrol(folder: Path, site: str, key: bytes, days: int, at: datetime | None = None) -> Enrolment:
    """Let a site connect with the key that it made.

    Raises:
        KeyFileError: not a usable name or key, or one that is taken.
    """
    if not _NAME.fullmatch(site):
        raise KeyFileError("site", "must be of letters, digits, '.', '_', '-'", value=site)
    now = at or datetime.now(UTC)
    public_key = public_pem(parse_public_key(key, f"key of {site}")).decode()
    others = read_enrolments(folder)
    for other in others:
        if other.public_key == public_key and other.site != site:
            raise KeyFileError(f"key of {site}", "must be no other site's", value=other.site)
        if other.public_key == public_key and not other.is_valid(now):
            remedy = "Let the site make a new one: fedretina site keys --new."
            rule, ended = "must not have been revoked or have expired", other.revoked_at or other.expires_at
            raise KeyFileError(f"key of {site}", rule, value=ended, remedy=remedy)
        if other.site == site and other.public_key != public_key and other.is_valid(now):
            remedy = f"Take the old key's leave first: fedretina coordinator revoke {site}."
            raise KeyFileError(f"site {site}", "must not have another valid key", remedy=remedy)
    stamp, end = (time.isoformat(timespec="seconds") for time in (now, now + timedelta(days=days)))
    enrolment = Enrolment(site, public_key, stamp, end)
    _write(folder, [other for other in others if other.public_key != public_key] + [enrolment])
    return enrolment


def revoke(folder: Path, site: str, at: datetime | None = None) -> None:
    """Take a site's leave to connect; raises ``KeyFileError`` when it has none."""
    now = (at or datetime.now(UTC)).isoformat(timespec="seconds")
    enrolments = read_enrolments(folder)
    if not any(enrolment.site == site and not enrolment.revoked_at for enrolment in enrolments):
        known = ", ".join(sorted({enrolment.site for enrolment in enrolments})) or "none"
        raise KeyFileError("site", "must be enrolled", value=site, remedy=f"Enrolled: {known}.")
    _write(folder, [replace(e, revoked_at=e.revoked_at or now) if e.site == site else e for e in enrolments])


def _write(folder: Path, enrolments: list[Enrolment]) -> None:
    ordered = sorted(enrolments, key=lambda e: (e.site, e.enrolled_at))
    write_atomic(folder / SITES, json.dumps([asdict(e) for e in ordered], indent=1).encode())
