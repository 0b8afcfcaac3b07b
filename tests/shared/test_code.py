"""Does the digest name the code that runs at a site, all of it and nothing else?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import code
from shared.code import code_digest


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("shared/a.py", "shared/deep/b.py", "client/c.py", "server/d.py", "shared/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    code_digest.cache_clear()
    yield tmp_path
    code_digest.cache_clear()


def digest_now() -> str:
    code_digest.cache_clear()
    return code_digest()


def test_any_change_of_a_sites_code_changes_the_digest(tree: Path) -> None:
    seen = {digest_now()}
    (tree / "client/c.py").write_text("changed")
    seen.add(digest_now())
    (tree / "shared/deep/b.py").rename(tree / "shared/deep/e.py")
    seen.add(digest_now())
    (tree / "shared/new.py").write_text("")
    seen.add(digest_now())
    (tree / "shared/a.py").unlink()
    seen.add(digest_now())
    assert len(seen) == 5


def test_nothing_else_changes_it(tree: Path) -> None:
    before = digest_now()
    (tree / "server/d.py").write_text("changed")
    (tree / "shared/notes.txt").write_text("changed")
    (tree / "client/__pycache__").mkdir()
    (tree / "client/__pycache__/c.cpython-311.pyc").write_bytes(b"compiled")
    assert digest_now() == before


def test_content_that_moves_between_files_changes_it(tree: Path) -> None:
    before = digest_now()
    (tree / "shared/a.py").write_text("client/c.py")
    (tree / "client/c.py").write_text("shared/a.py")
    assert digest_now() != before


def test_every_process_of_an_installation_finds_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from shared.code import code_digest; print(code_digest())"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == code_digest()
