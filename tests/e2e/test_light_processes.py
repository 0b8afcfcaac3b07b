"""Do the processes that mostly wait, or are started again, begin without the packages that only training needs?"""

import subprocess
import sys

import pytest

from shared.code import ROOT


@pytest.mark.parametrize("module", ["client.node", "server.app", "server.door", "server.serve", "simulation.__main__"])
def test_a_process_that_waits_loads_neither_torch_nor_pandas(module: str) -> None:
    program = f"import sys; import {module}; print([m for m in ('torch', 'pandas') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
