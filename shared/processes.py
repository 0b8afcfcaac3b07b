"""How do processes of ours end together? A child left behind must not work beside the one that replaces it."""

from __future__ import annotations

import os
import signal
import threading
import time

_LOOK_S = 0.25


def end_with_parent(parent: int | None = None) -> None:
    """From now on this process ends, at once, when the one that started it has ended, however that came.

    Args:
        parent: its process id; given, it also counts when the parent has ended before this call.
    """
    parent = os.getppid() if parent is None else parent
    if os.getppid() != parent:
        os._exit(1)

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()


def stop_on_signals() -> threading.Event:
    """An event that is set when somebody asks this process to stop, by Ctrl-C or as systemd does."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop
