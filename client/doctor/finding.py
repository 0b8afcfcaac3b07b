"""What does a diagnosis consist of? For each thing looked at, whether it is well, and if not, what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at.
        state: ``OK``; ``WARN``, it works for now; or ``FAIL``, the site cannot work like this.
        problem: what was found, well or not.
        fix: what to do; given exactly when ``state`` is not ``OK``.
    """

    check: str
    state: str
    problem: str
    fix: str = ""

    def __post_init__(self) -> None:
        if (self.state == OK) == bool(self.fix) or self.state not in (OK, WARN, FAIL):
            raise ValueError(f"{self.check} must have a fix, and only where there is a problem")


def ok(check: str, found: str) -> Finding:
    """It is well."""
    return Finding(check, OK, found)


def warn(check: str, problem: str, fix: str) -> Finding:
    """It works for now."""
    return Finding(check, WARN, problem, fix)


def fail(check: str, problem: str, fix: str) -> Finding:
    """The site cannot work like this."""
    return Finding(check, FAIL, problem, fix)


def exit_code(findings: Sequence[Finding]) -> int:
    """0 when nothing fails, else 2; warnings do not count."""
    return 2 if any(finding.state == FAIL for finding in findings) else 0


def to_plain(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Ready for JSON."""
    return [asdict(finding) for finding in findings]
