"""How does a test get a coordinator that sites reach over TLS, and sites that reach it?"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvicorn
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.server.superlink.linkstate import LinkState

from client.connection import Connection
from client.parcels import Parcel
from server.certificates import CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY
from server.coordinator import DATABASE, Settings, init
from server.door import Door, build_server
from server.enrolment import enrol, revoke, valid_enrolments
from server.grid import LinkGrid
from server.link import admit, open_link_state, site_names
from server.waiting import Waiting
from shared.keys import PrivateKey, new_key, public_pem
from shared.messages import ARRAYS, CONFIG, encode_weights
from shared.weights import Weights

PATIENCE_S = 20.0
SMALL: Weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(1.5, dtype=np.float64)}
# 13 MB, so that it goes in several pieces.
LARGE: Weights = {"w": np.random.default_rng(0).normal(size=(1700, 1000)), "z": np.zeros((), dtype=np.float32)}


@dataclass
class Link:
    """A coordinator's folder and what serves it."""

    folder: Path
    state: LinkState
    port: int

    @property
    def address(self) -> str:
        """As sites dial it."""
        return f"127.0.0.1:{self.port}"

    @property
    def authority(self) -> bytes:
        """The certificate that sites trust."""
        return (self.folder / CA_CERTIFICATE).read_bytes()

    def admit(self) -> None:
        """What the link does every second."""
        admit(self.state, valid_enrolments(self.folder))

    def enrol(self, site: str, key: PrivateKey | None = None) -> PrivateKey:
        """Let a site in that has connected once, and return its key."""
        key = key or new_key()
        enrol(self.folder, site, public_pem(key.public_key()), 1)
        self.admit()
        with self.connect(key):
            return key

    def revoke(self, site: str) -> None:
        """Let a site in no more."""
        revoke(self.folder, site)
        self.admit()

    def node(self, site: str) -> int:
        """The node of a site."""
        return {name: node for node, name in site_names(self.state).items()}[site]

    def connect(self, key: PrivateKey, address: str = "") -> Connection:
        """A site's connection, to be entered."""
        return Connection(address or self.address, self.authority, key)


@contextmanager
def link(folder: Path) -> Iterator[Link]:
    """A new coordinator, served to sites by a thread."""
    port = free_port()
    init(folder, Settings(port=port))
    state = open_link_state(folder / DATABASE)
    with (
        closing(Waiting(folder / DATABASE, hold_s=0.1)) as waiting,  # longer than what it saw last may be old
        serving(Door(state, waiting), folder, port),
    ):
        yield Link(folder, state, port)


@contextmanager
def serving(app: Door, folder: Path, port: int) -> Iterator[uvicorn.Server]:
    """A TLS server of the coordinator's certificate, in a thread."""
    server = build_server(app, "127.0.0.1", port, folder / SERVER_CERTIFICATE, folder / SERVER_KEY)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield server
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(done: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Return when it is so; fail when it is not in good time."""
    deadline = time.monotonic() + patience_s
    while not done():
        assert time.monotonic() < deadline, "not in good time"
        time.sleep(0.02)


def content(weights: Weights, text: str = "x") -> RecordDict:
    """What a message carries."""
    return RecordDict({ARRAYS: encode_weights(weights), CONFIG: ConfigRecord({"text": text, "numbers": [1, 2]})})


def task(node: int, weights: Weights = SMALL, text: str = "x") -> Message:
    """A message to a site."""
    return Message(content(weights, text), node, "train")


def answer(inbox: Parcel, outbox: Parcel, weights: Weights | None = None, text: str = "y") -> None:
    """Do what a worker does: read the one, fill the other."""
    message = inbox.load()
    own = message.content if weights is None else content(weights, text)
    outbox.store(Message(own, reply_to=message))


def pulled(grid: LinkGrid, message_id: str) -> Message:
    """The reply to a message, which has come."""
    (reply,) = grid.pull_messages([message_id])
    assert reply.metadata.reply_to_message_id == message_id
    return reply


def take_part(connection: Connection, folder: Path, weights: Weights | None = None) -> Parcel:
    """Pull a message and push the answer, which is returned."""
    inbox, outbox = Parcel(folder / "inbox"), Parcel(folder / "outbox")
    assert connection.pull(inbox)
    answer(inbox, outbox, weights)
    connection.push(outbox)
    return outbox
