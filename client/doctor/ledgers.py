"""Are the ledgers in order? What left the site and what it cost, whole, the owner's alone, and how much is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from client.doctor.finding import Finding, fail, ok, warn
from client.doctor.folder import private_findings
from shared.errors import FedretinaError

_NEARLY_SPENT = 0.9  # of the site's cap


def ledger_findings(folder: Path) -> Iterator[Finding]:
    """Both ledgers; a site that has sent nothing yet has none."""
    from client.egress import EGRESS  # with numpy, which may be what is broken
    from client.ledger import LEDGER

    there = [folder / name for name in (EGRESS, LEDGER) if (folder / name).exists()]
    for file in there:
        yield from private_findings("ledgers", file, file.name, 0o600)
    try:
        yield from _whole(folder) if there else [ok("ledgers", "nothing has left this site yet")]
    except FedretinaError as error:
        fix = error.remedy or "Restore state/ from the newest copy; fedretina site audit says more."
        yield fail("ledgers", f"{Path(error.name).name} {error.rule}", fix)


def _whole(folder: Path) -> Iterator[Finding]:
    from client.departures import audit
    from client.spending import statement

    found, spent = audit(folder), statement(folder)
    if not found["whole"]:
        fix = "Stop the site and find out why: fedretina site audit. Never put an older copy of state/ back."
        yield fail("ledgers", found["faults"][0], fix)
    else:
        yield ok("ledgers", f"whole; {found['messages']} messages left")
    cap, epsilon = spent["epsilon_cap"], spent["epsilon_spent"]
    if epsilon >= _NEARLY_SPENT * cap and epsilon > 0.0:
        fix = "Decide on a larger epsilon_cap in site.yaml, or take no further private study."
        yield warn("privacy budget", f"{epsilon:.3g} of epsilon_cap {cap:g} are spent", fix)
    else:
        yield ok("privacy budget", f"{epsilon:.3g} of epsilon_cap {cap:g} are spent")
