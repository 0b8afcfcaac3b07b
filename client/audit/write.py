"""How does an audit become files? ``audit.json`` of figures, and ``audit.html`` for people, which stays at the site."""

from __future__ import annotations

import json
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from client.audit.demonstration import Demonstration, Redrawn
from client.audit.page import render
from client.audit.result import Audit
from client.audit.strength import FALSE_RATES, Strength
from shared.files import write_atomic

FORMAT = 1
JSON, HTML = "audit.json", "audit.html"
_DIGITS = 5


def write_audit(folder: Path, audit: Audit, audited_on: date | None = None) -> tuple[Path, Path]:
    """Write both files into a folder, each whole and readable by its owner alone; returns page and JSON.

    Args:
        audited_on: printed on the page; today unless a test says otherwise.
    """
    page = render(audit, audited_on or date.today())
    write_atomic(folder / JSON, (json.dumps(to_plain(audit), indent=1) + "\n").encode())
    write_atomic(folder / HTML, page.encode())
    return folder / HTML, folder / JSON


def to_plain(audit: Audit) -> dict[str, Any]:
    """The figures, as plain data: no image, and nothing of a single patient. Its keys: docs/audit.md."""
    return {
        "format": FORMAT,
        "version": version("fedretina"),
        "site": audit.site,
        "study": audit.study.name,
        "study_digest": audit.study_digest,
        "model_digest": audit.model_digest,
        "verdict": audit.verdict,
        "limit": audit.limit,
        "epsilon": audit.epsilon,
        "delta": audit.delta,
        "members": audit.members,
        "others": audit.others,
        "shadows": audit.shadows,
        "attacks": [_attack(attack) for attack in audit.attacks],
        "reconstruction": [_demonstration(shown) for shown in audit.demonstrations],
    }


def _attack(attack: Strength) -> dict[str, Any]:
    rates = zip(FALSE_RATES, attack.rates, strict=True)
    return {
        "name": attack.attack,
        "auc": _rounded(attack.area),
        "auc_interval": None if attack.interval is None else [_rounded(end) for end in attack.interval],
        "tpr": {
            f"{asked:g}": None
            if rate is None
            else {
                "found": _rounded(rate.found),
                "interval": [_rounded(rate.low), _rounded(rate.high)],
                "false_alarms": rate.false_alarms,
                "chance": _rounded(rate.chance),
            }
            for asked, rate in rates
        },
    }


def _demonstration(shown: Demonstration) -> dict[str, Any]:
    return {
        "batch": shown.batch,
        "scans": [_scan(scan) for scan in shown.scans],
        "inputs_read": shown.inputs_read,
        "inputs": shown.inputs,
    }


def _scan(scan: Redrawn) -> dict[str, Any]:
    likenesses = {"own": scan.own, "unrelated": scan.unrelated, "other_scan": scan.other_scan}
    told = {name: {"psnr": round(each.psnr, 2), "ssim": round(each.ssim, 3)} for name, each in likenesses.items()}
    return {"modality": scan.modality, "recognised": scan.is_recognised, **told}


def _rounded(value: float) -> float:
    return round(value, _DIGITS)
