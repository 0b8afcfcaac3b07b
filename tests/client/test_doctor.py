"""Does the doctor find each thing that is broken, say how to mend it, and never break itself?"""

from __future__ import annotations

import fcntl
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.approvals import APPROVED, DECISIONS, decide
from client.doctor import coordinator, folder, machine, packages
from client.doctor.coordinator import Answer, ask, coordinator_findings, membership_findings
from client.doctor.diagnosis import as_json, diagnose, print_table
from client.doctor.finding import FAIL, OK, WARN, Finding, exit_code, fail, ok, warn
from client.doctor.ledgers import ledger_findings
from client.egress import EGRESS, Egress, open_egress
from client.ingest.pseudonyms import IMPORTS, KEY, open_pseudonyms
from client.ledger import LEDGER, accounted, entries, spent
from client.membership import KIT, PRIVATE_KEY, make_keys, own_key
from shared.accounting import Release
from shared.code import code_digest
from shared.errors import KeyFileError
from shared.files import write_atomic
from shared.messages import Task
from shared.site_folder import SiteFolder
from tests.client.plans import DELTA, StagePlan, follow
from tests.factories import make_study
from tests.memberships import NOW, keyed_site, make_kit
from tests.server.links import free_port, link

GIB = 2**30


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Telemetry off, as the command has it."""
    for name, value in machine._OFF.items():
        monkeypatch.setenv(name, value)


def states(findings: Iterator[Finding] | list[Finding]) -> list[str]:
    return [finding.state for finding in findings]


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = list(findings)
    return finding


# Findings


def test_a_problem_comes_with_a_fix_and_nothing_else_does() -> None:
    with pytest.raises(ValueError, match="must have a fix"):
        Finding("disk", FAIL, "full")
    with pytest.raises(ValueError, match="must have a fix"):
        Finding("disk", WARN, "nearly full")
    with pytest.raises(ValueError, match="must have a fix"):
        Finding("disk", OK, "empty", "celebrate")


def test_the_exit_code_is_zero_without_a_failure() -> None:
    assert exit_code([ok("a", "well"), warn("b", "so so", "do")]) == 0
    assert exit_code([ok("a", "well"), fail("b", "bad", "do")]) == 2


# Machine


@pytest.mark.parametrize(
    ("wanted", "available", "expected"),
    [
        ("cpu", {"cpu"}, [OK]),
        ("cuda", {"cpu"}, [FAIL]),
        ("mps", {"cpu", "cuda"}, [FAIL]),
        ("cuda", {"cpu", "cuda"}, [OK]),
        ("cpu", {"cpu", "cuda"}, [OK, WARN]),
    ],
)
def test_the_device_of_the_settings_must_be_there(wanted: str, available: set[str], expected: list[str]) -> None:
    assert states(machine.device_findings(wanted, available)) == expected


def test_threads_beyond_the_processors_are_told(tmp_path: Path) -> None:
    assert states(machine.thread_findings(2, 2)) == [OK]
    finding = only(machine.thread_findings(64, 2))
    assert (finding.state, "threads: 2" in finding.fix) == (WARN, True)
    quota, there = tmp_path / "cpu.max", machine._usable_processors(tmp_path / "absent")
    for text, expected in (
        ("100000 100000\n", 1),
        ("20000 100000", 1),
        ("max 100000", there),
        ("x", there),
        ("5 0", there),
    ):
        quota.write_text(text)
        assert machine._usable_processors(quota) == expected
    quota.write_text(f"{(there + 5) * 1000} 1000")
    assert machine._usable_processors(quota) == there


def test_the_disk_must_hold_the_decoded_scans_that_are_not_there_yet() -> None:
    assert states(machine.disk_findings(3 * GIB, 0, 0)) == [OK]
    assert states(machine.disk_findings(1 * GIB, 0, 0)) == [FAIL]
    assert states(machine.disk_findings(10 * GIB, 100_000, 0)) == [FAIL]
    assert states(machine.disk_findings(10 * GIB, 100_000, 12 * GIB)) == [OK]


def test_memory_clock_and_telemetry() -> None:
    assert states(machine.memory_findings(GIB)) == [WARN]
    assert states(machine.memory_findings(8 * GIB)) == [OK]
    assert states(machine.memory_findings(None)) == [OK]
    assert states(machine.year_findings(datetime(1970, 1, 1))) == [FAIL]
    assert states(machine.year_findings(NOW)) == [OK]
    off = dict(machine._OFF)
    assert states(machine.telemetry_findings(off)) == [OK]
    for name in off:
        assert name in only(machine.telemetry_findings(off | {name: "x"})).problem
        assert states(machine.telemetry_findings({key: value for key, value in off.items() if key != name})) == [FAIL]


def test_memory_is_read_where_the_machine_tells(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  8 kB\nMemAvailable:   4 kB\n")
    assert machine._available_memory(file) == 4096
    file.write_text("nothing")
    assert machine._available_memory(file) is None
    assert machine._available_memory(tmp_path / "absent") is None


# Packages


def test_python_must_be_new_enough() -> None:
    assert states(packages.python_findings((3, 10), (3, 11))) == [FAIL]
    assert states(packages.python_findings((3, 11), (3, 11))) == [OK]
    assert states(packages.python_findings((4, 0), (3, 11))) == [OK]


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"torch": "2.13.0+cpu", "numpy": "2.0"}, [OK]),
        ({"torch": "2.12.0", "numpy": "2.0"}, [FAIL]),
        ({"torch": None, "numpy": "2.0"}, [FAIL]),
        ({"torch": "2.13.0", "numpy": "1.0"}, [WARN]),
        ({"torch": "2.13.0", "numpy": None}, [WARN]),
        ({"torch": None, "numpy": None}, [FAIL, WARN]),
    ],
)
def test_packages_must_be_those_that_were_tested(installed: dict[str, str | None], expected: list[str]) -> None:
    pinned = {"torch": "2.13.0"}
    assert states(packages.package_findings(pinned, {**pinned, "numpy": "2.0"}, installed)) == expected


def test_pins_are_read_as_pip_writes_them() -> None:
    text = (
        "# a comment\nflwr[simulation]==1.41.0\nRuamel.Yaml==1.0 # why\npillow\nuvloop==1 ; sys_platform == 'linux'\n"
    )
    assert packages.pins(text) == {"flwr": "1.41.0", "ruamel-yaml": "1.0"}


def test_this_environment_is_looked_at_by_its_real_files() -> None:
    found = {finding.check: finding for finding in packages.look()}
    assert set(found) == {"Python", "packages", "torch"}
    assert "requirements.lock" in found["packages"].problem or found["packages"].fix


def test_a_broken_torch_is_a_finding_and_the_rest_is_still_looked_at(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = {finding.check: finding.state for finding in diagnose(site.path)}
    assert found["torch"] == found["device"] == FAIL
    assert {"permissions", "site folder", "processes", "membership", "disk"} <= set(found)


# Folder


def test_a_healthy_site_has_no_problem(site: SiteFolder, quiet: None) -> None:
    findings = diagnose(site.path)
    looked_at = {finding.check for finding in findings}
    assert {"Python", "torch", "device", "disk", "memory", "clock", "telemetry", "permissions"} <= looked_at
    assert [finding for finding in findings if finding.state == FAIL and finding.check != "packages"] == []


def test_a_folder_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    findings = diagnose(tmp_path / "nowhere")
    assert findings[-1].check == "site folder"
    assert exit_code(findings) == 2


@pytest.mark.parametrize(
    ("path", "mode", "expected"),
    [
        ("", 0o755, FAIL),
        ("", 0o701, FAIL),
        ("", 0o750, WARN),
        ("", 0o700, OK),
        ("state", 0o755, FAIL),
        (PRIVATE_KEY, 0o640, FAIL),
        ("state/keys/pseudonyms.key", 0o644, FAIL),
    ],
)
def test_what_others_can_read_is_found(tmp_path: Path, path: str, mode: int, expected: str) -> None:
    site, _ = keyed_site(tmp_path / "north")
    (site.path / "state").chmod(0o700)
    (site.path / "state/keys/pseudonyms.key").touch(mode=0o600)
    (site.path / path).chmod(mode)
    finding = only(folder.permission_findings(site.path))
    assert finding.state == expected
    assert expected == OK or finding.fix.startswith("chmod")


def test_the_key_of_the_pseudonyms_is_looked_at_as_an_import_does(site: SiteFolder) -> None:
    file = site.path / KEY
    assert states(folder.pseudonym_findings(site.path)) == [OK]
    assert not file.exists()
    open_pseudonyms(site.path)
    assert states(folder.pseudonym_findings(site.path)) == [OK]

    def cut() -> None:
        file.write_bytes(b"xy")

    def open_to_others() -> None:
        file.chmod(0o644)

    def lost() -> None:
        (site.path / IMPORTS).mkdir()
        (site.path / IMPORTS / "scans.sqlite").touch()
        file.unlink()

    for damage in (cut, open_to_others, lost):
        damage()
        finding = next(finding for finding in diagnose(site.path) if finding.check == "pseudonyms")
        with pytest.raises(KeyFileError) as caught:
            open_pseudonyms(site.path)
        assert (finding.state, finding.fix) == (FAIL, caught.value.remedy)
    assert not file.exists()


def test_following_the_fix_mends_the_permissions(tmp_path: Path) -> None:
    site, _ = keyed_site(tmp_path / "north")
    site.path.chmod(0o755)
    site.state.chmod(0o755)
    for finding in folder.permission_findings(site.path):
        command, mode, path = finding.fix.split(" ")
        assert command == "chmod"
        Path(path).chmod(int(mode, 8))
    assert states(folder.permission_findings(site.path)) == [OK]


def test_faults_of_the_contract_are_counted_and_not_repeated(site: SiteFolder) -> None:
    for file in site.image_files.rglob("*.png"):
        file.rename(file.with_name("Doe^Jane.png"))
    finding = next(finding for finding in diagnose(site.path) if finding.check == "site folder")
    assert finding.state == FAIL
    assert "site check" in finding.fix
    assert "image-" not in as_json(diagnose(site.path))


def test_wrong_settings_are_a_fault(site: SiteFolder) -> None:
    (site.path / "site.yaml").write_text("device: gpu\n")
    found = {finding.check: finding.state for finding in diagnose(site.path)}
    assert found["site folder"] == FAIL
    assert found["device"] == OK  # the default


def test_who_works_in_the_folder_is_seen_and_not_kept_out(site: SiteFolder) -> None:
    assert only(folder.lock_findings(site.path)).problem == "none is at work"
    for name, expected in ((folder.SERVED, [OK]), (folder.IMPORTED_INTO, [WARN, OK])):
        lock = site.path / name
        lock.parent.mkdir(parents=True)
        with lock.open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            assert states(folder.lock_findings(site.path)) == expected
    assert only(folder.lock_findings(site.path)).problem == "none is at work"
    with lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it


def test_approvals_of_another_version_are_found(tmp_path: Path) -> None:
    site, key = keyed_site(tmp_path / "north")
    assert states(folder.version_findings(site.path, code_digest())) == [OK]
    decide(site.path, key, make_study(), APPROVED)
    assert states(folder.version_findings(site.path, code_digest())) == [OK]
    assert states(folder.version_findings(site.path, "0" * 64)) == [WARN]
    (site.path / DECISIONS / "damaged.json").write_text("[")
    assert states(folder.version_findings(site.path, code_digest())) == [WARN]


# Membership and coordinator


def test_a_site_of_no_federation_is_well(tmp_path: Path, site: SiteFolder) -> None:
    assert only(membership_findings(site.path, "north", NOW)).state == OK
    make_keys(site.path)
    assert only(membership_findings(site.path, "north", NOW)).state == OK


def test_a_kit_that_does_not_serve_is_found(tmp_path: Path) -> None:
    site, key = keyed_site(tmp_path / "north")

    def found(now: datetime = NOW, name: str = "north") -> str:
        return only(membership_findings(site.path, name, now)).state

    write_atomic(site.path / KIT, make_kit(key=key).to_json().encode())
    assert found() == OK
    assert found(NOW + timedelta(days=20)) == WARN  # ends in ten days
    assert found(NOW + timedelta(days=40)) == FAIL
    assert found(name="south") == FAIL
    write_atomic(site.path / KIT, make_kit().to_json().encode())  # of another key
    assert found() == FAIL
    write_atomic(site.path / KIT, b"{")
    assert found() == FAIL
    (site.path / PRIVATE_KEY).unlink()
    assert found() == FAIL


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(date=NOW), [OK, OK]),
        (Answer(), [OK]),
        (Answer(date=NOW - timedelta(seconds=60)), [OK, FAIL]),  # we are ahead
        (Answer(date=NOW + timedelta(seconds=60)), [OK, OK]),
        (Answer(date=NOW + timedelta(seconds=600)), [OK, FAIL]),
        (Answer("ConnectionRefusedError"), [FAIL]),
        (Answer(distrusted=True), [FAIL]),
    ],
)
def test_what_a_connection_tells(answer: Answer, expected: list[str]) -> None:
    assert states(coordinator_findings("host:1", answer, NOW)) == expected


def test_a_real_coordinator_answers_and_registers_nobody(tmp_path: Path) -> None:
    with link(tmp_path / "coordinator") as there:
        answer = ask(there.address, there.authority.decode())
        assert answer.problem == ""
        assert answer.date is not None
        assert abs((datetime.now(UTC) - answer.date).total_seconds()) < 5
        assert there.state.get_node_info() == []
        site, key = keyed_site(tmp_path / "north")
        expires_at = (datetime.now(UTC) + timedelta(days=90)).isoformat()
        kit = replace(make_kit(key=key), address=there.address, expires_at=expires_at)
        write_atomic(site.path / KIT, replace(kit, authority=there.authority.decode()).to_json().encode())
        assert states(coordinator.look(site.path)) == [OK, OK, OK]
        write_atomic(site.path / KIT, kit.to_json().encode())  # the authority of somebody else
        assert states(coordinator.look(site.path)) == [OK, FAIL]


def test_nobody_there_is_a_finding(tmp_path: Path) -> None:
    assert ask(f"127.0.0.1:{free_port()}", make_kit().authority).problem == "ConnectionRefusedError"


def test_whoever_never_answers_is_left_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        answer = ask(f"127.0.0.1:{server.getsockname()[1]}", make_kit().authority, timeout_s=0.2)
        assert answer.problem
        assert time.monotonic() - began < 5


def test_whoever_speaks_another_language_is_a_finding() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        assert ask(f"127.0.0.1:{server.getsockname()[1]}", make_kit().authority).problem
        thread.join()


def test_a_site_that_cannot_reach_its_coordinator_fails(tmp_path: Path) -> None:
    site, key = keyed_site(tmp_path / "north")
    kit = make_kit(key=key)
    write_atomic(site.path / KIT, kit.to_json().encode())
    asked = []

    def nobody(address: str, authority: str) -> Answer:
        asked.append(address)
        return Answer("TimeoutError")

    assert states(coordinator.look(site.path, nobody))[-1] == FAIL
    assert asked == [kit.address]


# All of it


def test_every_problem_of_a_wrecked_site_has_a_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, _ = keyed_site(tmp_path / "north")
    site.path.chmod(0o755)
    (site.path / "events.parquet").write_bytes(b"nothing")
    (site.path / "dataset.yaml").write_text("[")
    (site.path / KIT).write_text("{")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    findings = diagnose(site.path)
    wrong = {finding.check for finding in findings if finding.state == FAIL}
    assert {"permissions", "site folder", "membership", "telemetry"} <= wrong
    assert all(finding.fix for finding in findings if finding.state != OK)
    assert exit_code(findings) == 2


def test_a_check_that_breaks_is_a_finding(site: SiteFolder, monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    def broken(_: Path) -> Iterator[Finding]:
        raise RuntimeError("Doe^Jane")

    monkeypatch.setattr(folder, "permission_findings", broken)
    findings = diagnose(site.path)
    assert next(finding for finding in findings if finding.check == "permissions").state == FAIL
    assert "Doe" not in as_json(findings)
    assert any(finding.check == "membership" for finding in findings)


def test_the_table_and_the_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        ok("Python", "3.11"),
        fail("packages", "[red]flwr[/red] is missing", "make setup"),
        warn("disk", "low", "free some"),
    ]
    print_table(findings)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Check", "Problem", "How", "to", "fix"]
    assert [line.split()[0] for line in lines[1:]] == [FAIL, WARN, OK]  # problems first
    assert "[red]flwr[/red] is missing" in lines[1]
    assert [entry["problem"] for entry in json.loads(as_json(findings))] == [finding.problem for finding in findings]


# Ledgers


@pytest.fixture
def spender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site that has begun both ledgers and spent some of its patients' privacy."""
    site = keyed_site(tmp_path / "north")[0].path
    follow(monkeypatch, StagePlan({"survey": Release(5.0, 1.0, 1)}))
    Egress(site, own_key(site), "north")
    with accounted(site, Task(make_study(), "survey", 0, 0, "", None, {}), float("inf")):
        pass
    return site


def test_a_site_that_sent_nothing_has_no_ledgers(tmp_path: Path) -> None:
    assert only(ledger_findings(tmp_path)).state == OK


def test_whole_ledgers_with_budget_left_are_well(spender: Path) -> None:
    assert states(ledger_findings(spender)) == [OK, OK]


@pytest.mark.parametrize("name", [EGRESS, LEDGER])
def test_a_ledger_that_others_can_read_is_found(spender: Path, name: str) -> None:
    (spender / name).chmod(0o640)
    found = [finding for finding in ledger_findings(spender) if finding.state == FAIL]
    assert "0640" in only(iter(found)).problem


def test_a_changed_and_a_missing_ledger_are_found(spender: Path) -> None:
    with open_egress(spender) as connection:
        connection.execute("UPDATE departures SET content = replace(content, 'begun', 'ended')")
    assert states(ledger_findings(spender)) == [FAIL, OK]
    (spender / EGRESS).unlink()
    assert "missing" in next(ledger_findings(spender)).problem


def test_what_is_no_ledger_is_found(spender: Path) -> None:
    (spender / LEDGER).write_bytes(b"no database")
    assert only(ledger_findings(spender)).state == FAIL


def test_a_budget_that_is_nearly_spent_is_told_early(spender: Path) -> None:
    used = spent(entries(spender), DELTA)
    (spender / "site.yaml").write_text(f"delta_cap: {DELTA:f}\nepsilon_cap: {used / 0.95}\n")
    assert [finding.check for finding in ledger_findings(spender) if finding.state == WARN] == ["privacy budget"]
