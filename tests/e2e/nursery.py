"""How do tests start a hundred processes in the time of two? One process imports everything once, and forks the others.

What a test starts is an interpreter of ours, ``python()``: a small program that asks the nursery for a process, passes
signals on to it and ends as it ends. The process itself has its own id, memory, streams and environment, and dies at a
``kill -9`` of either. That commands also start from nothing, and import only what they need, is tested elsewhere.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared.code import ROOT

_IMPORTED = (
    "client.app",
    "client.cli.federation",
    "client.node",
    "client.privacy",
    "client.secure_aggregation",
    "client.worker",
    "client.check.write",
    "client.doctor.diagnosis",
    "client.dpsgd",
    "hydra",
    "jinja2",
    "matplotlib.figure",
    "matplotlib.layout_engine",
    "matplotlib.style",
    "opacus.accountants",
    "pandas",
    "server.app",
    "server.coordinator",
    "server.door",
    "server.report.page",
    "server.secure_sum",
    "server.serve",
    "simulation.compose",
    "simulation.results",
    "simulation.run",
    "simulation.summary",
    "scipy.stats",
    "sklearn.metrics",
)


SHARED = "FEDRETINA_TESTS_NURSERY"  # in the environment: the interpreter of a nursery of several processes


def two_cores() -> None:
    """Give a process two cores, so that its arms train with as many threads on every machine."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


@lru_cache(maxsize=1)
def python() -> str:
    """The interpreter to start, for ``-m module argument ...``; its nursery lives as long as who called first."""
    return os.environ.get(SHARED) or _found()


def _found() -> str:
    folder = Path(tempfile.mkdtemp(prefix="nursery-"))
    stand_in = folder / "python"
    stand_in.write_text(f"#!{sys.executable} -IS\n{Path(__file__).with_name('stand_in.py').read_text()}")
    stand_in.chmod(stat.S_IRWXU)
    command = [sys.executable, "-m", "tests.e2e.nursery", str(folder / "socket")]
    nursery = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    atexit.register(shutil.rmtree, folder)
    atexit.register(nursery.communicate)  # before that; closes its input, at which it ends
    assert nursery.stdout.readline() == b"ready\n"
    return str(stand_in)


def main() -> None:
    """``python -m tests.e2e.nursery SOCKET``: fork what is asked for, until the standard input is closed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        print("ready", flush=True)  # who asks now waits, and need not before
        _import_all()
        wanted = _Nursery(listener).serve()
    if wanted is not None:  # this is the new process
        _become(wanted)


def _import_all() -> None:
    two_cores()  # libraries count them when they are imported
    import fedretina

    fedretina.set_environment()
    from shared.models.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    for name in ("timm", *_IMPORTED):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a new process would copy all that is there


class _Nursery:
    """Forks on request, and tells who asked of the end."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._askers: dict[int, socket.socket] = {}  # by the id of the process that they asked for
        self._ended, ended = socket.socketpair()
        for end in (self._ended, ended):
            end.setblocking(False)
        self._kept = ended
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(ended.fileno())

    def serve(self) -> dict[str, Any] | None:
        """In a new process what it is to be; None in this one, at the end."""
        with selectors.DefaultSelector() as selector:
            for source in (self._listener, self._ended, sys.stdin):
                selector.register(source, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if sys.stdin in ready:
                    for child in self._askers:
                        os.kill(child, signal.SIGKILL)
                    return None
                if self._ended in ready:
                    self._ended.recv(4096)
                    self._tell(selector)
                for child, asker in list(self._askers.items()):
                    if asker in ready:  # killed: it has nothing more to say
                        os.kill(child, signal.SIGKILL)
                        selector.unregister(asker)
                if self._listener in ready:
                    asker, _ = self._listener.accept()
                    wanted, streams = _receive(asker)
                    child = os.fork()
                    if not child:
                        self._leave(asker, streams)
                        return wanted
                    for stream in streams:
                        os.close(stream)
                    self._askers[child] = asker
                    selector.register(asker, selectors.EVENT_READ)
                    _say(asker, child)

    def _tell(self, selector: selectors.BaseSelector) -> None:
        while self._askers:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            asker = self._askers.pop(child)
            if asker in selector.get_map():
                selector.unregister(asker)
            _say(asker, os.waitstatus_to_exitcode(status))
            asker.close()

    def _leave(self, asker: socket.socket, streams: list[int]) -> None:
        """Of the new process: nothing of the nursery's is left to it."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (self._ended, self._kept, asker, *self._askers.values()):
            end.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)


def _receive(asker: socket.socket) -> tuple[dict[str, Any], list[int]]:
    length, streams, _, _ = socket.recv_fds(asker, 8, 3)
    with asker.makefile("rb") as stream:
        return json.loads(stream.read(int.from_bytes(length, "big"))), streams


def _say(asker: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # it was killed
        asker.sendall(b"%d\n" % number)


def _become(wanted: dict[str, Any]) -> None:
    """Be what ``python -m module argument ...`` would be."""
    flag, module, *arguments = wanted["arguments"]
    assert flag == "-m", wanted["arguments"]
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["folder"])
    os.sched_setaffinity(0, wanted["cores"])
    os.getppid = lambda: _parent_of(wanted["stand_in"])
    further = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [os.getcwd(), *further]
    sys.executable = wanted["executable"]
    sys.argv, sys.orig_argv = [module, *arguments], [sys.executable, *wanted["arguments"]]
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, closefd=False, buffering=1)  # noqa: SIM115  # for the life of the process
        for number, mode in enumerate(("r", "w", "w"))
    )
    random.seed()
    for path in further:
        start = Path(path, "sitecustomize.py")
        if start.exists():
            runpy.run_path(str(start))
    sys.modules.pop(module, None)
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # An interpreter that ends well takes apart all that it has imported: seconds here.
    os._exit(code if isinstance(code, int) else int(code is not None))


def process_state(process: int | str) -> list[str]:
    """Fields of ``/proc/PID/stat`` from the third on: state, parent, …; see proc(5)."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def _parent_of(process: int) -> int:
    """Whoever started a stand-in is the parent of what it stands for; where that has ended, init is."""
    try:
        return int(process_state(process)[1])
    except OSError:
        return 1


if __name__ == "__main__":
    main()
