"""Do the files in ``deploy/`` say what the code does, run as nobody special, and open one port only?"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
import yaml

from fedretina import app
from server.coordinator import Settings
from shared.code import ROOT

DEPLOY = ROOT / "deploy"
COORDINATOR, SITE = DEPLOY / "fedretina-coordinator.service", DEPLOY / "fedretina-site@.service"
PORT = str(Settings().port)
DOCUMENTS = [ROOT / "README.md", *sorted(path for path in DEPLOY.iterdir() if path.is_file())]
COMPOSED = {"simulate", "rehearse"}  # take overrides, which Hydra judges
BINARY = "/opt/fedretina/.venv/bin/fedretina"


def unit(file: Path) -> dict[str, list[str]]:
    """The settings of a unit's service; some are given several times."""
    settings: dict[str, list[str]] = {}
    for line in file.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(key, []).append(value)
    return settings


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return found


def commands() -> list[tuple[str, list[str]]]:
    """Every ``fedretina ...`` that a document tells to type or a file runs, with the name of the document."""
    found = []
    for file in DOCUMENTS:
        text = file.read_text().replace("\\\n", " ").replace("sudo -u fedretina ", "")
        lines = [line for line in text.splitlines() if not line.startswith("Description=")]
        spans = re.findall(r"`(fedretina [^`]+)`", text)
        spans += [span for line in lines for span in re.findall(r"(?:^|[\s/=])(fedretina .*)$", line)]
        spans += [f"fedretina {rest}" for rest in re.findall(r"docker compose run (?:--\S+ )*\S+ (.*)", text)]
        found += [(file.name, _words(span)) for span in spans]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    found += [("compose.yaml", service["command"]) for service in compose.values()]
    return [(name, words) for name, words in found if words]


def _words(command: str) -> list[str]:
    """What follows ``fedretina`` as far as it is one command of a shell; nothing for prose."""
    command = re.split(r"\s#|[|;&>`…]|\.\.\.", command)[0].replace("<", "").strip()
    try:
        words = shlex.split(command)[1:]
    except ValueError:
        return []
    return words if words and words[0] in _group(typer.main.get_command(app)).commands else []


def _group(command: click.Command) -> click.Group:
    assert isinstance(command, click.Group)
    return command


def fault(words: list[str]) -> str:
    """Why the command line would not be understood; empty when it would be."""
    command: click.Command = typer.main.get_command(app)
    rest = list(words)
    while isinstance(command, click.Group):
        if not rest or rest[0] == "--help":
            return ""
        name = rest.pop(0)
        if name not in command.commands:
            return f"no command {name}"
        command = command.commands[name]
    if command.name in COMPOSED:
        return ""
    try:
        with command.make_context(str(command.name), rest, resilient_parsing=False):
            return ""
    except click.exceptions.Exit:
        return ""
    except click.ClickException as error:
        return error.format_message()


def test_commands_are_found() -> None:
    """The test below would pass on documents that name none."""
    names = {(name, *words[:2]) for name, words in commands()}
    assert ("README.md", "site", "check") in names
    assert ("README.md", "coordinator", "enrol") in names
    assert (COORDINATOR.name, "coordinator", "serve") in names
    assert (SITE.name, "site", "start") in names
    assert ("compose.yaml", "site", "start") in names


@pytest.mark.parametrize(
    ("name", "words"), commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_command_of_a_document_exists_with_its_options(name: str, words: list[str]) -> None:
    assert fault(words) == "", f"{name}: fedretina {' '.join(words)}"


@pytest.mark.parametrize(
    "words", [["site", "fly"], ["site", "start", "--sites", "x"], ["coordinator", "enrol", "north"], ["export"]]
)
def test_command_that_does_not_exist_would_be_told(words: list[str]) -> None:
    assert fault(words)


def test_container_is_nobody_special_and_is_built_without_network() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert int(users[-1].split(":")[0]) > 0
    text = "\n".join(lines)
    assert text.count("pip install") == text.count("--no-index")
    assert lines.index("USER " + users[-1]) < lines.index('ENTRYPOINT ["fedretina"]')
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert copied >= {"shared", "client", "server", "simulation", "configs", "fedretina.py", "requirements.lock"}
    assert all((ROOT / word).exists() for word in copied)


def test_services_are_confined(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"], name
        assert not service.get("privileged"), name
        assert service.get("network_mode") is None, name


def test_a_site_changes_its_state_only(services: dict[str, dict[str, Any]]) -> None:
    sites = {name: service for name, service in services.items() if name != "coordinator"}
    assert len(sites) == 3
    for name, service in sites.items():
        data, state = service["volumes"]
        assert data.endswith(":/site:ro"), name
        assert state.endswith(f"{name}/state:/site/state"), name
    assert [service["networks"] for service in sites.values()] == [[name] for name in sites]


def test_nothing_but_the_coordinators_port_is_open(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        published = [str(port).split(":")[-1] for port in service.get("ports", [])]
        exposed = [str(port) for port in service.get("expose", [])]
        assert set(published + exposed) <= ({PORT} if name == "coordinator" else set()), name
    assert unit(COORDINATOR)["SocketBindDeny"] == ["any"]
    assert unit(COORDINATOR)["SocketBindAllow"] == [f"tcp:{PORT}"]
    assert unit(SITE)["SocketBindDeny"] == ["any"]
    assert "SocketBindAllow" not in unit(SITE)


def test_all_addresses_are_listened_on_only_where_the_coordinator_is_made() -> None:
    for file in sorted(DEPLOY.iterdir()):
        lines = [line for line in file.read_text().splitlines() if "0.0.0.0" in line]
        assert all("--host 0.0.0.0" in line for line in lines), file.name
        assert not lines or file.name == "README.md", file.name


@pytest.mark.parametrize("file", [COORDINATOR, SITE], ids=lambda file: file.name)
def test_unit_is_hardened_and_comes_back(file: Path) -> None:
    settings = unit(file)
    wanted = {
        "User": "fedretina",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "CapabilityBoundingSet": "",
        "Restart": "always",
        "RestartSec": "5",
        "OOMPolicy": "continue",
    }
    assert {key: settings[key] for key in wanted} == {key: [value] for key, value in wanted.items()}
    (start,), (writes,) = settings["ExecStart"], settings["ReadWritePaths"]
    folder = shlex.split(start)[-1]
    assert writes == (folder if file == COORDINATOR else f"{folder}/state")


@pytest.mark.parametrize("file", [COORDINATOR, SITE], ids=lambda file: file.name)
def test_unit_is_understood_by_systemd(file: Path, tmp_path: Path) -> None:
    RawConfigParser(strict=False).read_string(file.read_text())
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine")
    copy = tmp_path / file.name.replace("@.", "@north.")
    copy.write_text(file.read_text().replace(BINARY, "/bin/true"))  # which it looks for
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert copy.name not in done.stderr, done.stderr
