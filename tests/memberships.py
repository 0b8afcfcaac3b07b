"""How does a test get a site that is a member of a federation? Keys, kits, and tasks of studies it may approve."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from client.membership import make_keys, own_key
from shared.config import Study
from shared.keys import PrivateKey, new_key, public_pem
from shared.kit import Kit
from shared.messages import Task
from shared.site_folder import SiteFolder
from tests.factories import empty_site, make_study

NOW = datetime(2030, 6, 1, 12, 0, tzinfo=UTC)


def keyed_site(folder: Path, name: str = "north") -> tuple[SiteFolder, PrivateKey]:
    """A site folder without patients, with its key."""
    site = empty_site(name).write(folder)
    make_keys(folder)
    return site, own_key(folder)


def make_kit(site: str = "north", key: PrivateKey | None = None, at: datetime = NOW) -> Kit:
    """A kit that is good for a month, with an authority of its own."""
    authority = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(authority.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(days=1))
        .not_valid_after(at + timedelta(days=30))
        .sign(authority, hashes.SHA256())
    )
    return Kit(
        site=site,
        address="127.0.0.1:9",
        authority=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        public_key=public_pem((key or new_key()).public_key()).decode(),
        expires_at=(at + timedelta(days=30)).isoformat(timespec="seconds"),
    )


def make_task(study: Study | None = None, **changes: Any) -> Task:
    """A task of the first fine-tuning round, without weights."""
    study = study or make_study()
    fields: Mapping[str, Any] = {
        "stage": "finetune",
        "round": 1,
        "rounds": study.finetune.rounds,
        "split": "",
        "statistics": None,
        "weights": {},
        **changes,
    }
    return Task(study, **fields)
