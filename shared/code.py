"""Which code is installed here? One digest, which a site approves with a study and the coordinator names in tasks."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_AT_A_SITE = ("shared", "client")  # what runs inside a hospital


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 over the names and contents of every file of code that runs at a site."""
    digest = hashlib.sha256()
    for package in _AT_A_SITE:
        for file in sorted((ROOT / package).rglob("*.py")):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(ROOT).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
