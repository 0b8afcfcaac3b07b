"""Where do the parts of messages lie? Each in a file beside the SuperLink's database, which knows which are whole.

Flower keeps them in the database, which writes a model twice, into its journal and then into its pages, and never
becomes smaller again.
"""

from __future__ import annotations

import os
from pathlib import Path

from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.objectstore_models import StoredObject
from sqlalchemy import select

_WRITTEN = b"in its file"  # what the database holds in place of a part


class PartFiles(SqlObjectStore):
    """Flower's store of parts, by their SHA-256, of which the contents are files.

    A part is written before the database calls it whole, and nobody reads it earlier. Whoever writes it a second time,
    after being killed or for another message, writes the same bytes. A power cut may leave less than the database
    says, but ends the run, whose messages are sent again then.
    """

    def __init__(self, database: Path) -> None:
        super().__init__(str(database), verify=False)  # who takes parts from a site compares them with their names
        self.folder = database.with_suffix(".parts")
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def put(self, object_id: str, object_content: bytes) -> None:
        """Write a part, of which the database knows that it is to come."""
        validate_object_content(object_content)
        handle = os.open(self.folder / object_id, os.O_CREAT | os.O_WRONLY, 0o600)
        with open(handle, "wb") as stream:
            stream.write(object_content)
            stream.truncate()  # what a killed writer left may be longer
        super().put(object_id, _WRITTEN)

    def get(self, object_id: str) -> bytes | None:
        """A part; None for one that is not known, empty for one that has not come yet."""
        content = super().get(object_id)
        try:
            return (self.folder / object_id).read_bytes() if content else content
        except FileNotFoundError:  # its message was dropped since
            return None

    def size_bytes(self, object_id: str) -> int:
        """Of a part that is whole."""
        return (self.folder / object_id).stat().st_size

    def sweep(self) -> None:
        """Take away the files of parts that the database does not know any more."""
        with self._mutation_session() as session:  # meanwhile no part becomes known again
            kept = set(session.scalars(select(StoredObject.object_id)))
            for file in self.folder.iterdir():
                if file.name not in kept:
                    file.unlink(missing_ok=True)
