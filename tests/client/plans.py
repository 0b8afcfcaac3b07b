"""How does a test get a study with a privacy plan? By a plan that says what each stage costs, whatever the study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from client import approvals, ledger, review, spending
from shared.accounting import Release, epsilon
from shared.config import Study

COST = Release(8.0, 1.0, 1)
DELTA = 1e-5


@dataclass(frozen=True)
class StagePlan:
    """A privacy plan of so many messages a stage at one price."""

    costs: Mapping[str, Release] = field(default_factory=lambda: {"survey": COST, "finetune": COST})
    messages: int = 2
    delta: float = DELTA

    @property
    def epsilon(self) -> float:
        return epsilon(self.releases(), self.delta)

    def of(self, study: Study) -> StagePlan:
        return self

    def release_of(self, stage: str) -> Release | None:
        return self.costs.get(stage)

    def releases(self) -> list[Release]:
        return [release for release in self.costs.values() for _ in range(self.messages)]


def follow(monkeypatch: pytest.MonkeyPatch, plan: StagePlan) -> None:
    """Let every study have this plan."""
    for module in (approvals, ledger, review, spending):
        monkeypatch.setattr(module, "PrivacyPlan", plan)
