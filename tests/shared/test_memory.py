"""Is freed memory kept where that saves time, and given back where it is much?"""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCK_BYTES = 40 * 2**20  # between the bounds of glibc and ours
_FAULTS = f"""
import resource
from shared.memory import give_back, keep_freed

def block():
    return bytearray(b"x") * {BLOCK_BYTES}

def faults_of(do):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    do()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

{{prepare}}
block()
print(faults_of(block))
"""


def faults(prepare: str) -> int:
    """Pages that the system hands out for a block of the size of one that was just freed."""
    command = [sys.executable, "-c", _FAULTS.format(prepare=prepare)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is of glibc")
def test_freed_memory_is_used_again_until_it_has_to_be_given_back() -> None:
    fresh = faults("pass")
    assert faults("keep_freed()") < fresh / 4
    assert faults("keep_freed(); give_back(10**6)") < fresh / 4  # of a small model
    assert faults("keep_freed(); give_back(10**9)") > fresh / 2
