"""In the place of a Python interpreter: ask the nursery for a process, pass on signals to it, and end as it ends.

Run as a program of its own, with nothing but the standard library, beside the nursery's socket: ``nursery.py``.
"""

import json
import os
import signal
import socket
import sys
from contextlib import suppress


def main() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as nursery:
        nursery.connect(os.path.join(os.path.dirname(os.path.abspath(__file__)), "socket"))
        wanted = {
            "executable": os.path.abspath(__file__),
            "arguments": sys.argv[1:],
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "cores": sorted(os.sched_getaffinity(0)),
            "stand_in": os.getpid(),
        }
        request = json.dumps(wanted).encode()
        socket.send_fds(nursery, [len(request).to_bytes(8, "big")], [0, 1, 2])
        nursery.sendall(request)
        with nursery.makefile() as answers:
            child = int(answers.readline())
            with open("/proc/self/comm", "w") as name:  # for whoever sees this process and means the other
                name.write(str(child))

            def pass_on(number: int, _: object) -> None:
                with suppress(ProcessLookupError):
                    os.kill(child, number)

            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, pass_on)
            status = int(answers.readline() or 70)  # 70: the nursery is gone
    if status < 0:
        with suppress(OSError):  # of those that cannot be caught
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
