"""How does a check become files? ``check.json``, which may be shared with a coordinator, and ``check.html`` for people.

The JSON holds counts, shares, years and words of ours: no id, path, free text or date. Its schema: docs/check.md.
"""

from __future__ import annotations

import json
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from client.check.faults import faults_for_others
from client.check.page import render
from client.check.records import FeatureFigure
from client.check.result import CheckResult
from client.check.suppression import Cell
from shared.files import write_atomic

FORMAT = 2
JSON, HTML = "check.json", "check.html"


def write_check(folder: Path, result: CheckResult, checked_on: date | None = None) -> tuple[Path, Path]:
    """Write both files into the site folder, each as a whole; returns page and JSON.

    Args:
        checked_on: printed on the page; today unless a test says otherwise.
    """
    page = render(result, checked_on or date.today())
    write_atomic(folder / JSON, (json.dumps(to_plain(result), indent=1, ensure_ascii=False) + "\n").encode())
    write_atomic(folder / HTML, page.encode())
    return folder / HTML, folder / JSON


def to_plain(result: CheckResult) -> dict[str, Any]:
    """What may be shared, as plain data."""
    figures, faults = result.figures, faults_for_others(result.faults)
    return {
        "format": FORMAT,
        "version": version("fedretina"),
        "site": result.site,
        "verdict": result.verdict,
        "smallest_cell": result.smallest_cell,
        "faults": [{"table": table, "rule": rule} for table, rule in faults],
        "concerns": [
            {"name": each.name, "value": each.value, "rule": each.rule, "remedy": each.remedy, "fails": each.fails}
            for each in result.concerns
        ],
        "figures": {
            "patients": _cell(figures.patients),
            "scans": _cell(figures.scans),
            "pairing": _cell(figures.pairing),
            "paired_at_least": figures.paired_at_least and round(figures.paired_at_least, 2),
            "spacing_mm": figures.spacing_mm,
            "events": _cell(figures.events),
            "years": {name: None if years is None else list(years) for name, years in figures.years.items()},
            "features": [_feature(feature) for feature in figures.features],
            "tasks": [{**_cell(task), "horizon_days": figures.horizons_days.get(task.name)} for task in figures.tasks],
            "imports": [{"name": source.name, "outcome": source.parts} for source in figures.imports],
            "left_out": [{"name": reasons.name, "reason": reasons.parts} for reasons in figures.left_out],
            "vocabularies": [_cell(rows) for rows in figures.vocabularies],
            "decoding": None if figures.decoding is None else _cell(figures.decoding),
        },
    }


def _cell(cell: Cell) -> dict[str, Any]:
    plain: dict[str, Any] = {"name": cell.name, "count": cell.count}
    if cell.groups:
        plain["by"] = {name: [_cell(child) for child in cells] for name, cells in cell.groups}
    return plain


def _feature(feature: FeatureFigure) -> dict[str, Any]:
    return {
        "name": feature.name,
        "unit": feature.unit,
        "in_unit": feature.in_unit,
        "plausible": None if feature.plausible is None else list(feature.plausible),
        "quantiles": feature.quantiles,
        "coverage": _cell(feature.coverage),
    }
