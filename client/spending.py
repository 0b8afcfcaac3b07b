"""What does the privacy ledger say, to the hospital? What is spent, what is left, and on which study and stage."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from typing import Any

from client.ledger import Entry, entries, forecast, spent
from client.site import read_settings
from shared.accounting import RDP, epsilon
from shared.config import Study
from shared.privacy import PrivacyPlan
from shared.text import printable

_UNIT = "a patient with all visits, both eyes and the record; two cohorts are compared that differ in one patient"


def statement(folder: Path) -> dict[str, Any]:
    """The ledger of a site as plain data; ε at the site's δ, by the PRV accountant, and RDP's beside it."""
    settings, rows = read_settings(folder), entries(folder)
    private = [entry.release for entry in rows if entry.release is not None]
    total = spent(rows, settings.delta_cap)
    return {
        "unit": _UNIT,
        "delta": settings.delta_cap,
        "epsilon_cap": settings.epsilon_cap,
        "epsilon_spent": total,
        "epsilon_spent_rdp": epsilon(private, settings.delta_cap, RDP),
        "epsilon_left": max(settings.epsilon_cap - total, 0.0),
        "releases": settings.releases,
        "not_private": sum(entry.release is None for entry in rows),
        "stages": _by_stage(rows, settings.delta_cap),
    }


def outlook(folder: Path, study: Study) -> str:
    """What the ledger states now, and would state after the whole of a study, in words."""
    if math.isinf(PrivacyPlan.of(study).epsilon):
        return ""
    settings = read_settings(folder)
    now, then = spent(entries(folder), settings.delta_cap), forecast(folder, study)
    verdict = "" if then <= settings.epsilon_cap else ": the site will refuse to go on once that is reached"
    return (
        f"this site's ledger states ε = {now:.3g} so far; after the whole study it would be {then:.3g}, of "
        f"{settings.epsilon_cap:g} that site.yaml allows, at δ = {settings.delta_cap:g}{verdict}"
    )


def _by_stage(rows: list[Entry], delta: float) -> list[dict[str, Any]]:
    """What each stage of each study cost by itself; such sums do not add up, as ε grows more slowly than they."""

    def place(entry: Entry) -> tuple[str, str, str, bool]:
        return entry.study, entry.study_digest, entry.stage, entry.release is None

    stages = []
    for (study, study_digest, stage, bare), found in groupby(sorted(rows, key=place), place):
        group = list(found)
        stages.append(
            {
                "study": study,
                "study_digest": study_digest,
                "stage": stage,
                "private": not bare,
                "messages": len(group),
                "steps": sum(entry.steps or 0 for entry in group),
                "epsilon": None if bare else spent(group, delta),
                "patients": max(entry.patients for entry in group),
                "first": min(entry.time for entry in group),
                "last": max(entry.time for entry in group),
            }
        )
    return sorted(stages, key=lambda stage: str(stage["first"]))


def print_statement(stated: dict[str, Any]) -> None:
    """Print what ``statement`` gave as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("Study", "Stage", "Messages", "Steps", "ε alone", "Patients", "Last", box=None, padding=(0, 2, 0, 0))
    for stage in stated["stages"]:
        cost = "not private" if stage["epsilon"] is None else f"{stage['epsilon']:.3f}"
        cells = [stage["study"], stage["stage"], stage["messages"], stage["steps"], cost, stage["patients"]]
        table.add_row(*(Text(printable(str(cell))) for cell in (*cells, stage["last"][:16])))
    console = Console()
    console.print(
        f"spent ε = {stated['epsilon_spent']:.3f} of {stated['epsilon_cap']:g}, left {stated['epsilon_left']:.3f}, "
        f"at δ = {stated['delta']:g} (by RDP {stated['epsilon_spent_rdp']:.3f}); the unit is {stated['unit']}",
        highlight=False,
    )
    if stated["not_private"]:
        console.print(f"{stated['not_private']} messages were not private: no ε bounds what they tell", highlight=False)
    console.print(table if stated["stages"] else "nothing was released")
