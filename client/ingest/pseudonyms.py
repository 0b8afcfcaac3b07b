"""Who is a patient, once the name is gone? Keyed pseudonyms: the same for scans and records, and for this site alone.

HMAC-SHA256 (RFC 2104) with a key that never leaves ``state/``: without it nobody can try the numbers of a hospital one
by one until a pseudonym comes out.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import KeyFileError
from shared.keys import write_secret

KEY = "state/keys/pseudonyms.key"
IMPORTS = "state/imports"  # what was imported, by pseudonyms of the key
_ANEW = "Restore it from a copy, or import everything into a new folder: a new key gives new pseudonyms."
_JOURNALS = ("*.sqlite", "*.parquet")  # there, of scans and of records
_KEY_BYTES = 32
_NAME_DIGITS = 32  # 128 bits


@dataclass(frozen=True)
class Pseudonyms:
    """Pseudonyms of one site."""

    key: bytes = field(repr=False)

    def subject_id(self, original: str) -> int:
        """A positive int64 for a patient; white space around the hospital's id does not count, all else does."""
        number = int.from_bytes(self._digest("subject", original.strip())[:8], "big") >> 1
        return number or 1

    def name(self, kind: str, original: str) -> str:
        """32 hexadecimal digits for what an export names; equal names of two kinds give two pseudonyms."""
        return self._digest(f"name {kind}", original).hex()[:_NAME_DIGITS]

    def _digest(self, kind: str, original: str) -> bytes:
        message = f"{kind}\0{original}".encode("utf-8", "surrogatepass")  # file names need not be UTF-8
        return hmac.digest(self.key, message, hashlib.sha256)


def open_pseudonyms(folder: Path) -> Pseudonyms:
    """The pseudonyms of a site folder; the key is made at the first call.

    Raises:
        KeyFileError: a key that others can read or that is none, or no key where something was imported with one.
    """
    if (found := find_pseudonyms(folder)) is not None:
        return found
    _make(folder / KEY)
    return Pseudonyms(_read(folder / KEY))


def find_pseudonyms(folder: Path) -> Pseudonyms | None:
    """The pseudonyms of a site folder; None where its first import is yet to make the key. Raises as the one above."""
    file = folder / KEY
    if file.exists():
        return Pseudonyms(_read(file))
    if any(any((folder / IMPORTS).rglob(kind)) for kind in _JOURNALS):
        raise KeyFileError(str(file), "must exist, as there are imports made with it", remedy=_ANEW)
    return None


def _make(file: Path) -> None:
    """Under another name first: a key is there as a whole or not at all, and of two processes the first one's stays."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".key-", dir=file.parent) as folder:
        draft = Path(folder) / "key"
        write_secret(draft, secrets.token_bytes(_KEY_BYTES))
        try:
            os.link(draft, file)
        except FileExistsError:
            return


def _read(file: Path) -> bytes:
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        remedy = f"chmod 600 {file}"
        raise KeyFileError(str(file), "must be readable by its owner alone", value=oct(mode), remedy=remedy)
    try:
        key = file.read_bytes()
    except OSError as error:
        remedy = "Run as the user who made it."
        raise KeyFileError(str(file), "must be readable", value=type(error).__name__, remedy=remedy) from None
    if len(key) != _KEY_BYTES:
        raise KeyFileError(str(file), f"must be {_KEY_BYTES} bytes", value=f"{len(key)} bytes", remedy=_ANEW)
    return key
