"""Does the command line say in one line what its user can mend, and show a fault of ours as one?"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import fedretina as command_line
from client.init import init_site
from shared.files import naming, write_atomic
from shared.keys import write_secret
from tests.e2e.commands import fedretina


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A command line whose commands do nothing yet; nothing of the tests' own environment is set."""
    monkeypatch.setattr(command_line, "set_environment", lambda: None)
    monkeypatch.setattr(command_line, "keep_freed", lambda: None)
    return monkeypatch


def fail_by(failing: pytest.MonkeyPatch, error: BaseException) -> None:
    def app() -> None:
        raise error

    failing.setattr(command_line, "app", app)


@pytest.mark.parametrize("number", command_line.REFUSALS)
@pytest.mark.parametrize(("file", "told"), [("a\nb", "a\\nb"), (None, "what is written")])
def test_what_the_system_refuses_is_one_line_and_exit_code_2(
    failing: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, file: str | None, told: str
) -> None:
    fail_by(failing, OSError(number, os.strerror(number), file))
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    said = capsys.readouterr()
    assert (caught.value.code, said.out) == (2, "")
    assert said.err.startswith(f"fedretina: {told} must ")
    assert f"got '{os.strerror(number)}'. " in said.err
    assert said.err.endswith(".\n")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("error", [OSError("no number"), OSError(errno.EBADF, "Bad file"), ValueError("ours")])
def test_a_fault_of_ours_is_not_hidden(failing: pytest.MonkeyPatch, error: Exception) -> None:
    fail_by(failing, error)
    with pytest.raises(type(error)) as caught:
        command_line.main()
    assert caught.value is error


@pytest.mark.parametrize(
    "words",
    [
        ("label", "--task", "stroke_risk", "--site", "file"),
        ("keys", "--site", "file"),
        ("import", "csv", "file", "--mapping", "ist", "--site", "file"),
        ("init", "file/north"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("x")
    found = fedretina(tmp_path, "site", *words)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("fedretina: file")
    assert found.stderr.count("\n") == 1


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system has it: an error of ``write`` says no name. Nothing is left of what was begun."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write, file in (
        (lambda file: write_atomic(file, b"x"), tmp_path / "check.json"),
        (lambda file: write_secret(file, b"x"), tmp_path / "key"),
        (lambda file: init_site(file, "north", "UTC"), tmp_path / "north"),
    ):
        with pytest.raises(OSError, match="No space left") as caught:
            write(file)
        assert caught.value.filename == str(file)
        assert list(tmp_path.iterdir()) == []


def test_a_draft_is_named_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "check.json"
    with pytest.raises(PermissionError) as caught, naming(file):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / ".check.json-abc"))
    assert caught.value.filename == str(file)


def test_an_error_that_names_its_file_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, naming(tmp_path / "other"):
        (tmp_path / "absent").read_bytes()
    assert caught.value.filename == str(tmp_path / "absent")
