"""Is the site folder in order? Its contract, its permissions, its state, and who is at work in it."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from client.doctor.finding import Finding, fail, ok, warn
from client.ingest.pseudonyms import KEY, find_pseudonyms
from shared.errors import KeyFileError, SiteError

KEYS, SERVED, IMPORTED_INTO = "state/keys", "state/work/lock", "state/imports/lock"
_PUBLIC = (".pub", "kit.json")  # in the folder of the keys, but no secrets


def contract_findings(faults: Sequence[SiteError]) -> Iterator[Finding]:
    """Faults of the contract and of ``site.yaml``; their names may name patients and are not repeated."""
    if faults:
        places = f"{len(faults)} place{'' if len(faults) == 1 else 's'}"
        yield fail("site folder", f"breaks the contract in {places}", "fedretina site check lists them with remedies.")
    else:
        yield ok("site folder", "keeps the contract")


def permission_findings(folder: Path) -> Iterator[Finding]:
    """Who can read and write the folder, its state and its keys."""
    state = private_findings("permissions", folder / "state", "state", 0o700)
    found = [*_access(folder), *state, *_secrets(folder / KEYS)]
    yield from found or [ok("permissions", "the folder is this user's alone")]


def _access(folder: Path) -> Iterator[Finding]:
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        fix = f"Run as the user who owns it, or as that user: chmod u+rwx {folder}"
        yield fail("permissions", "this user cannot read and write the folder", fix)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o007:
        yield fail("permissions", f"every user of this machine has access (mode {mode:04o})", f"chmod 700 {folder}")
    elif mode & 0o070:
        fix = f"chmod 700 {folder}, unless all of the group may see patients."
        yield warn("permissions", f"users of its group have access (mode {mode:04o})", fix)


def private_findings(check: str, path: Path, told: str, wanted: int) -> Iterator[Finding]:
    """Whether others can read what must be its owner's alone; nothing where it is well, or not there.

    Args:
        told: what it is called.
        wanted: its mode.
    """
    if path.exists() and (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        yield fail(check, f"{told} is open to other users (mode {mode:04o})", f"chmod {wanted:o} {path}")


def _secrets(keys: Path) -> Iterator[Finding]:
    for file in sorted(keys.glob("*")) if os.access(keys, os.R_OK | os.X_OK) else ():
        if file.is_file() and not file.name.endswith(_PUBLIC):
            yield from private_findings("permissions", file, f"state/keys/{file.name}", 0o600)


def pseudonym_findings(folder: Path) -> Iterator[Finding]:
    """The key of the pseudonyms, without which nothing can be imported; a look makes none."""
    try:
        found = find_pseudonyms(folder)
    except KeyFileError as error:
        yield fail("pseudonyms", f"{KEY} {error.rule}", error.remedy)
    else:
        yield ok("pseudonyms", "no key yet: the first import makes it" if found is None else "a key")


def lock_findings(folder: Path) -> Iterator[Finding]:
    """Who works in the folder now: a site that is served is as it should be, an import is worth knowing of."""
    if _is_held(folder / IMPORTED_INTO):
        fix = "Wait until it has ended, or stop it; it can be run again."
        yield warn("processes", "an import is running; other figures may change", fix)
    yield ok("processes", "fedretina site start is running" if _is_held(folder / SERVED) else "none is at work")


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go at once
    except BlockingIOError:
        return True
    except OSError:  # there is none, or it cannot be read: permissions tell
        return False
    return False


def version_findings(folder: Path, code: str) -> Iterator[Finding]:
    """Approvals that other code was given: they do not hold for what is installed.

    Args:
        code: digest of the code that is installed.
    """
    from client.approvals import APPROVED, DECISIONS  # with torch, which may be what is broken

    outdated = unreadable = 0
    for file in sorted((folder / DECISIONS).glob("*.json")):
        try:
            decision = json.loads(file.read_bytes())["decision"]
            outdated += decision["verdict"] == APPROVED and decision["code_digest"] != code
        except (OSError, ValueError, KeyError, TypeError):
            unreadable += 1
    if unreadable:
        fix = f"Restore them from a copy, or remove them from {folder / DECISIONS} and decide again."
        yield warn("approvals", f"{unreadable} cannot be read", fix)
    if outdated:
        fix = "fedretina site review shows what they approve; then fedretina site approve, once more."
        yield warn("approvals", f"{outdated} of another version of fedretina: not valid for the one installed", fix)
    if not (outdated or unreadable):
        yield ok("approvals", "none of another version")
