"""Does whoever waits see how far an import is?"""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from client.ingest import progress as module
from client.ingest.progress import Progress


def shown(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "_LINE_S", 0.0)
    monkeypatch.setattr(module, "_REFRESH_S", 0.0)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with Progress("files", console) as progress:
        progress.advance()
        progress.expect(4)
        progress.advance(2)
        progress.advance(1)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_, last = shown(False, monkeypatch).splitlines()
    assert first == "files: 1"
    assert second.startswith("files: 3 of 4, ")
    assert second.endswith(" s left")
    assert last == "files: 4 of 4"


def test_on_a_terminal_there_is_a_bar_with_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(True, monkeypatch)
    assert "files" in text
    assert "3/4" in text
