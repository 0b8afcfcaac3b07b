"""Do processes of ours end together, and when they are asked to?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from shared.code import ROOT

CHILD = (
    "import time; from shared.processes import end_with_parent\n"
    "end_with_parent(); print('up', flush=True); time.sleep(60)"
)
PARENT = (
    "import subprocess, sys, time\n"
    f"child = subprocess.Popen([sys.executable, '-c', {CHILD!r}], stdout=subprocess.PIPE)\n"
    "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
)


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def has_ended(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent_however_that_came(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not has_ended(child)
        parent.send_signal(number)
        parent.wait(10)
    try:
        assert wait_until(lambda: has_ended(child))
    finally:
        if not has_ended(child):
            os.kill(child, signal.SIGKILL)


def test_a_child_whose_parent_ended_before_it_looked_ends_at_once() -> None:
    program = (
        "import threading; threading.Thread.start = lambda self: None  # without waiting for the next look\n"
        "from shared.processes import end_with_parent; end_with_parent(2**22); print('went on')"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, timeout=30, check=False)
    assert (found.returncode, found.stdout) == (1, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_asked_to_stop_ends_as_it_wants(number: signal.Signals) -> None:
    program = (
        "from shared.processes import stop_on_signals; stop = stop_on_signals(); print('up', flush=True)\n"
        "assert stop.wait(30); print('tidied', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.stdout.readline() == b"tidied\n"
        assert process.wait(10) == 0
