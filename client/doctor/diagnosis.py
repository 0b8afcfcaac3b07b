"""What keeps this site from working, and how is it mended? Everything that can be seen without a change."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from client.doctor import coordinator, folder, ledgers, machine, packages
from client.doctor.finding import FAIL, OK, WARN, Finding, fail, to_plain

_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}

# What needs torch or pandas is imported where it is used: a broken one is a finding and must not end the diagnosis.


def diagnose(site_folder: Path) -> list[Finding]:
    """Every finding about a site folder and the machine that it is on, good ones too."""
    looks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [("packages", packages.look)]
    if site_folder.is_dir():
        looks += [
            ("machine", lambda: machine.look(site_folder, *_asked_of_the_machine(site_folder))),
            ("permissions", lambda: folder.permission_findings(site_folder)),
            ("pseudonyms", lambda: folder.pseudonym_findings(site_folder)),
            ("site folder", lambda: _contract(site_folder)),
            ("processes", lambda: folder.lock_findings(site_folder)),
            ("approvals", lambda: _approvals(site_folder)),
            ("ledgers", lambda: ledgers.ledger_findings(site_folder)),
            ("membership", lambda: coordinator.look(site_folder)),
        ]
    else:
        missing = fail("site folder", "there is no such folder", "Make it: fedretina site init DIR.")
        looks.append(("site folder", lambda: iter([missing])))
    return list(chain.from_iterable(_safely(check, look) for check, look in looks))


def _contract(site_folder: Path) -> Iterator[Finding]:
    from client.check.faults import all_faults
    from shared.site_folder import SiteFolder

    return folder.contract_findings(list(all_faults(SiteFolder(site_folder))))


def _approvals(site_folder: Path) -> Iterator[Finding]:
    from shared.code import code_digest

    return folder.version_findings(site_folder, code_digest())


def _asked_of_the_machine(site_folder: Path) -> tuple[str, int, int]:
    """Device, threads and how many scans the site has; the contract's check tells where they cannot be read."""
    from client.site import SiteSettings, read_settings
    from shared.errors import SiteError
    from shared.site_folder import SiteFolder

    try:
        settings = read_settings(site_folder)
    except SiteError:
        settings = SiteSettings()
    try:
        scans = len(SiteFolder(site_folder).images())
    except SiteError:
        scans = 0
    return settings.device, settings.threads, scans


def _safely(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check that itself fails is a finding: the others must still be made."""
    try:
        yield from look()
    except OSError as error:
        yield fail(check, f"cannot be looked at: {type(error).__name__}", "Run as the user who owns the site folder.")
    except Exception as error:
        fix = "Report it to whoever maintains fedretina, with the version; the other checks hold."
        yield fail(check, f"the check itself broke: {type(error).__name__}", fix)


def print_table(findings: Sequence[Finding]) -> None:
    """Print what was found as a table, problems first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("Check", "Problem", "How to fix", box=None, padding=(0, 2, 0, 0), header_style="bold")
    order = {FAIL: 0, WARN: 1, OK: 2}
    for finding in sorted(findings, key=lambda finding: order[finding.state]):
        state = Text(f"{finding.state:<4} ", _COLOURS[finding.state])
        # As text: what is found may hold brackets, which rich would take for markup.
        table.add_row(state + Text(finding.check), Text(finding.problem), Text(finding.fix))
    Console().print(table)


def as_json(findings: Sequence[Finding]) -> str:
    """The findings as JSON, in the order in which they were made."""
    return json.dumps(to_plain(findings), indent=1, ensure_ascii=False)
