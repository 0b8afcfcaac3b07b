"""Is every line of a log whole, its owner's alone, and unable to deceive who reads it?"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import logs
from shared.logs import log_to

log = logging.getLogger("client.test_logs")


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Loggers as they were, afterwards."""
    loggers = [logging.getLogger(name) for name in logs._OURS]
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)
        logger.propagate = propagate


def lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_line_holds_time_level_source_and_text(tmp_path: Path) -> None:
    log_to(tmp_path / "log" / "x.jsonl")
    log.warning("%d of %s\nand more é", 1, "two")
    (line,) = lines(tmp_path / "log" / "x.jsonl")
    assert (line["level"], line["from"], line["text"]) == ("warning", "client.test_logs", "1 of two\nand more é")
    assert line["time"].endswith("+00:00")


def test_a_trace_is_part_of_its_line(tmp_path: Path) -> None:
    log_to(tmp_path / "x.jsonl")
    quoted = "".join(("w", "hy"))
    try:
        raise ValueError(quoted)
    except ValueError:
        log.exception("failed")
    (line,) = lines(tmp_path / "x.jsonl")
    assert line["trace"].endswith("ValueError")  # libraries quote values in what they raise
    assert "why" not in line["trace"]


def test_details_are_logged_when_asked_for(tmp_path: Path) -> None:
    log_to(tmp_path / "x.jsonl")
    log.debug("detail")
    log_to(tmp_path / "y.jsonl", verbose=True)
    log.debug("detail")
    assert [len(lines(tmp_path / name)) for name in ("x.jsonl", "y.jsonl")] == [1, 1]


def test_others_are_not_logged(tmp_path: Path) -> None:
    log_to(tmp_path / "x.jsonl")
    logging.getLogger("elsewhere").error("not ours")
    assert lines(tmp_path / "x.jsonl") == []


def test_files_stay_their_owners_alone_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_FILE_BYTES", 500)
    log_to(tmp_path / "x.jsonl")
    for i in range(100):
        log.info("line %d", i)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["x.jsonl", *(f"x.jsonl.{i}" for i in range(1, 6))]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert all(file.stat().st_size <= 500 for file in files)


def test_two_processes_that_share_a_file_lose_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node and its worker do: one rotates the file under the other."""
    monkeypatch.setattr(logs, "_FILE_BYTES", 2000)
    log_to(tmp_path / "x.jsonl")
    log.info("ours 0")
    program = (
        "import logging, sys; from pathlib import Path; from shared import logs; logs._FILE_BYTES = 2000\n"
        "logs.log_to(Path(sys.argv[1]))\n"
        "for i in range(40): logging.getLogger('client.x').info('theirs %d', i)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.jsonl")], timeout=60, check=True)
    before = {file.name for file in tmp_path.iterdir()}
    assert before == {"x.jsonl", "x.jsonl.1", "x.jsonl.2"}
    log.info("ours 1")
    assert {file.name for file in tmp_path.iterdir()} == before  # not rotated again, for that other file was full
    texts = [line["text"] for file in tmp_path.iterdir() for line in lines(file)]
    assert sorted(texts) == sorted(["ours 0", "ours 1", *(f"theirs {i}" for i in range(40))])
    assert "ours 1" in [line["text"] for line in lines(tmp_path / "x.jsonl")]


def test_a_name_from_outside_cannot_rewrite_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log_to()
    log.error("study %s", "x\x1b[2J\r\u202egood\nforged line")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert r"x\x1b[2J\r\u202egood\nforged line" in said
