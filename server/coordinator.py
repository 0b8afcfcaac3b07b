"""What is in a coordinator's folder? Settings, keys, sites, the SuperLink's database, and one folder a run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from server.certificates import CA_CERTIFICATE, create_authority, issue_server_certificate
from server.enrolment import Enrolment
from shared.config import Study
from shared.errors import ConfigError, FedretinaError
from shared.files import write_atomic
from shared.kit import Kit
from shared.knobs import dump, from_json, knob, load, to_json

SETTINGS, DATABASE, RUNS, LOG, KITS = "coordinator.yaml", "link.db", "runs", "log/coordinator.jsonl", "kits"
STUDY, STATUS, STOP = "study.json", "status.json", "stop"
WAITING, RUNNING, FINISHED, FAILED, STOPPED = "waiting", "running", "finished", "failed", "stopped"
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Settings:
    """``coordinator.yaml``: how sites reach this machine."""

    address: str = knob("127.0.0.1", "name or IP address by which sites reach the coordinator")
    host: str = knob("127.0.0.1", "address to listen on; 0.0.0.0 for all of the machine's")
    port: int = knob(9443, "port to listen on", ge=1, le=65535)

    @property
    def public(self) -> str:
        """host:port, as sites dial it."""
        return f"{self.address}:{self.port}"


def init(folder: Path, settings: Settings) -> None:
    """Make a coordinator's folder; raises ``ConfigError`` where there is one."""
    if (folder / SETTINGS).exists():
        remedy = "Change coordinator.yaml in it, or choose another folder."
        raise ConfigError(str(folder), "must not hold a coordinator yet", remedy=remedy)
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    create_authority(folder)
    issue_server_certificate(folder, list(dict.fromkeys([settings.address, "127.0.0.1", "localhost"])))
    write_atomic(folder / SETTINGS, yaml.safe_dump(dump(settings), sort_keys=False).encode())


def read_settings(folder: Path) -> Settings:
    """The settings of a coordinator; raises ``ConfigError``."""
    file = folder / SETTINGS
    if not file.exists():
        remedy = "Make it by fedretina coordinator init, or name another by --folder."
        raise ConfigError(str(folder), "must hold a coordinator", remedy=remedy)
    try:
        return load(Settings, yaml.safe_load(file.read_text(encoding="utf-8")) or {}, f"{file}: ")
    except yaml.YAMLError as error:
        raise ConfigError(str(file), "must be valid YAML", value=str(error).splitlines()[0]) from None


def write_kit(folder: Path, enrolment: Enrolment) -> Path:
    """The kit of an enrolled site, as a file."""
    kit = Kit(
        site=enrolment.site,
        address=read_settings(folder).public,
        authority=(folder / CA_CERTIFICATE).read_text(encoding="utf-8"),
        public_key=enrolment.public_key,
        expires_at=enrolment.expires_at,
    )
    file = folder / KITS / f"{enrolment.site}.json"
    write_atomic(file, kit.to_json().encode())
    return file


@dataclass(frozen=True)
class Status:
    """How far a run is, in one word and, where there is one, a reason."""

    status: str
    reason: str = ""


class RunFolder:
    """One study at this coordinator."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name

    @property
    def study(self) -> Study:
        """What is run."""
        return from_json(Study, (self.folder / STUDY).read_text(encoding="utf-8"))

    @property
    def status(self) -> Status:
        """How far it is."""
        file = self.folder / STATUS
        return Status(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else Status(WAITING)

    def become(self, status: str, reason: str = "") -> None:
        """Note how far the run is."""
        if self.status != Status(status, reason):
            write_atomic(self.folder / STATUS, json.dumps({"status": status, "reason": reason}).encode())

    @property
    def is_to_stop(self) -> bool:
        """Did the coordinator ask for it to stop?"""
        return (self.folder / STOP).exists()

    def ask_to_stop(self) -> None:
        """Stop it, until ``go_on``; raises ``FedretinaError`` when it has ended."""
        if self.status.status in (FINISHED, FAILED):
            raise FedretinaError(f"run {self.name}", "must not have ended", value=self.status.status)
        write_atomic(self.folder / STOP, b"")

    def go_on(self) -> None:
        """Let it go on where it was; raises ``FedretinaError`` when it has finished."""
        if self.status.status == FINISHED:
            raise FedretinaError(f"run {self.name}", "must not have finished")
        (self.folder / STOP).unlink(missing_ok=True)
        self.become(WAITING)


def create_run(folder: Path, study: Study, name: str = "") -> RunFolder:
    """A place for a study, which ``serve`` will run; raises ``ConfigError`` for a name that is taken or unusable."""
    read_settings(folder)
    name = name or f"{study.name}-seed{study.seed}"
    if not _RUN_NAME.fullmatch(name):
        raise ConfigError("name of the run", "must be of letters, digits, '.', '_', '-'", value=name)
    run = RunFolder(folder / RUNS / name)
    if (run.folder / STUDY).exists():
        remedy = f"Go on with it by fedretina coordinator resume {name}, or give another --name."
        raise ConfigError("name of the run", "must not be taken", value=name, remedy=remedy)
    write_atomic(run.folder / STUDY, to_json(study).encode())
    return run


def runs(folder: Path) -> Iterator[RunFolder]:
    """All runs, the oldest first."""
    files = sorted((folder / RUNS).glob(f"*/{STUDY}"), key=lambda file: file.stat().st_mtime)
    return (RunFolder(file.parent) for file in files)


def find_run(folder: Path, name: str = "") -> RunFolder:
    """A run by its name, or the latest; raises ``ConfigError``."""
    read_settings(folder)
    known = list(runs(folder))
    found = [run for run in known if run.name == name] if name else known[-1:]
    if not found:
        names = ", ".join(run.name for run in known) or "none yet"
        raise ConfigError("run", "must be one of the coordinator's", value=name or None, remedy=f"Known: {names}.")
    return found[0]
