"""What does a coordinator give a site that it enrolled? Address and certificate authority: nothing secret."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from shared.errors import KeyFileError
from shared.keys import in_fours

_FORMAT = 1


@dataclass(frozen=True)
class Kit:
    """A small file that may travel by mail: whoever has it, but not the site's key, can do nothing with it.

    Whoever changed it on the way could make the site speak with another coordinator: people compare the fingerprint.

    Attributes:
        site: the name by which the site is enrolled.
        address: host:port of the coordinator.
        authority: PEM certificate that the coordinator's own must be signed by.
        public_key: PEM of the site's key.
        expires_at: ISO 8601, UTC; until then the site may connect.
    """

    site: str
    address: str
    authority: str
    public_key: str
    expires_at: str

    def to_json(self) -> str:
        """The file's content."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1)

    @property
    def fingerprint(self) -> str:
        """Of the coordinator's authority, for people to compare."""
        certificate = x509.load_pem_x509_certificate(self.authority.encode())
        return in_fours(certificate.fingerprint(hashes.SHA256()).hex())


def parse_kit(content: bytes, name: str) -> Kit:
    """The inverse of ``to_json``; raises ``KeyFileError`` that speaks of ``name``."""
    try:
        data = json.loads(content)
        if data.pop("format") != _FORMAT:
            remedy = "Use the coordinator's version of fedretina."
            raise KeyFileError(name, f"must be of format {_FORMAT}", remedy=remedy)
        kit = Kit(**{field.name: _text(data[field.name]) for field in fields(Kit)})
        x509.load_pem_x509_certificate(kit.authority.encode())
        if datetime.fromisoformat(kit.expires_at).tzinfo is None:
            raise ValueError("a time without zone")
        host, _, port = kit.address.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError("no host:port")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise KeyFileError(name, "must be a kit", remedy="Ask the coordinator for a new one.") from None
    return kit


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value
