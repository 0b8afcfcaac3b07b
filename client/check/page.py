"""How does a check become one page that a data engineer and a clinician can read, print and keep?"""

from __future__ import annotations

from datetime import date
from importlib.metadata import version
from pathlib import Path

from client.check import words
from client.check.faults import faults_for_others
from client.check.result import CheckResult
from client.check.suppression import Cell, Shown, share
from shared.pages import render_page

_EYES = (("R", "right"), ("L", "left"))


def render(result: CheckResult, checked_on: date) -> str:
    """The page as HTML: no script, nothing from elsewhere; the same check gives the same bytes."""
    figures, faults = result.figures, faults_for_others(result.faults)
    devices = [
        (cell.name, device) for cell in reversed(figures.scans.group("modality")) for device in cell.group("device")
    ]
    say = (
        words.count,
        words.most,
        words.percent,
        words.number,
        words.between,
        words.years,
        words.capital,
        words.unbroken,
        bar,
    )
    return render_page(
        Path(__file__).parent,
        say,
        result=result,
        figures=figures,
        verdict=words.VERDICTS[result.verdict],
        headline=words.headline(result.verdict, len(faults), len(result.concerns)),
        faults=faults,
        scanned=_named(figures.patients.group("scans"), "with scans"),
        devices=devices,
        years=words.by_year(devices),
        eyes=_EYES,
        checked_on=f"{checked_on.day} {checked_on:%B %Y}",
        version=version("fedretina"),
    )


def _named(cells: tuple[Cell, ...], name: str) -> Cell:
    return next((cell for cell in cells if cell.name == name), Cell(name, 0))


def bar(part: Shown, whole: Shown) -> str:
    """Width of a bar, in percent."""
    return f"{100 * (share(part, whole) or 0):.1f}"
