"""How does a site become a member of a federation? Its own key, and the kit that the coordinator returns for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shared.errors import KeyFileError
from shared.files import write_atomic
from shared.keys import PrivateKey, new_key, private_pem, public_pem, read_private_key, write_secret
from shared.kit import Kit, parse_kit

PRIVATE_KEY, PUBLIC_KEY, KIT = "state/keys/site.key", "state/keys/site.pub", "state/keys/kit.json"


@dataclass(frozen=True)
class Membership:
    """With whom a site speaks, and as whom."""

    kit: Kit
    key: PrivateKey


def make_keys(folder: Path, anew: bool = False) -> Path:
    """Make the site's key, which never leaves it, and return the file of its public half, for the coordinator.

    Args:
        anew: replace the key that there is. The coordinator must enrol the new one, the site join and approve again.

    Raises:
        KeyFileError: there is a key, and ``anew`` was not asked for.
    """
    private = folder / PRIVATE_KEY
    if private.exists() and not anew:
        remedy = "Give --new to replace it; the coordinator must then enrol the new one."
        raise KeyFileError(str(private), "must not exist yet", remedy=remedy)
    key, draft = new_key(), private.with_name(f".{private.name}")
    if private.exists():
        from client.egress import hand_over  # which brings Flower; whoever looks at keys needs none

        hand_over(folder, own_key(folder), key)
    draft.unlink(missing_ok=True)
    write_secret(draft, private_pem(key))
    os.chmod(private.parent, 0o700)
    os.replace(draft, private)  # at any time there is the old key or the new one
    return write_public_key(folder)


def write_public_key(folder: Path) -> Path:
    """Write the public half of the site's key, for the coordinator; raises ``KeyFileError``."""
    file = folder / PUBLIC_KEY
    write_atomic(file, public_pem(own_key(folder).public_key()))
    return file


def own_key(folder: Path) -> PrivateKey:
    """The site's key; raises ``KeyFileError``."""
    if not (folder / PRIVATE_KEY).exists():
        raise KeyFileError(str(folder / PRIVATE_KEY), "must exist", remedy="Make it by fedretina site keys.")
    return read_private_key(folder / PRIVATE_KEY)


def join(folder: Path, kit_file: Path, at: datetime | None = None) -> Kit:
    """Keep a coordinator's kit, which must be for this site and its key.

    Raises:
        KeyFileError: a kit that is damaged, expired, or somebody else's.
    """
    from shared.site_folder import SiteFolder  # which brings pandas; who serves a site needs none

    kit, key, name = read_kit(kit_file), own_key(folder), SiteFolder(folder).name
    if kit.site != name:
        remedy = "Ask the coordinator to enrol the site by the name in dataset.yaml."
        raise KeyFileError(f"{kit_file}: site", f"must be {name}", value=kit.site, remedy=remedy)
    if kit.public_key != public_pem(key.public_key()).decode():
        remedy = "Send the coordinator state/keys/site.pub of this site folder again."
        raise KeyFileError(f"{kit_file}: public_key", "must be this site's", remedy=remedy)
    if datetime.fromisoformat(kit.expires_at) <= (at or datetime.now(UTC)):
        remedy = "Ask the coordinator to enrol the site again."
        raise KeyFileError(f"{kit_file}: expires_at", "must not have passed", value=kit.expires_at, remedy=remedy)
    write_atomic(folder / KIT, kit.to_json().encode())
    return kit


def read_kit(file: Path) -> Kit:
    """A kit from its file; raises ``KeyFileError``."""
    if not file.exists():
        raise KeyFileError(str(file), "must exist", remedy="Ask the coordinator for a kit: coordinator enrol.")
    return parse_kit(file.read_bytes(), str(file))


def read_membership(folder: Path) -> Membership:
    """With whom the site joined; raises ``KeyFileError`` when it has not, or with a key that was replaced since."""
    key = own_key(folder)
    if not (folder / KIT).exists():
        remedy = "Join by the kit that the coordinator returned: fedretina site join."
        raise KeyFileError(str(folder), "must have joined a federation", remedy=remedy)
    kit = read_kit(folder / KIT)
    if kit.public_key != public_pem(key.public_key()).decode():
        remedy = "Send the coordinator state/keys/site.pub and join by the kit that it returns."
        raise KeyFileError(str(folder / KIT), "must be for the site's present key", remedy=remedy)
    return Membership(kit, key)
