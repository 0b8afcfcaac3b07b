"""What does a study's privacy cost, and what ties it together? A stand-in that knows studies without privacy only."""

from __future__ import annotations

from dataclasses import dataclass

from shared.accounting import Release
from shared.config import Study


@dataclass(frozen=True)
class PrivacyPlan:
    """The plan of a study without privacy: nothing is accounted."""

    epsilon: float = 0.0
    delta: float = 0.0
    clip: float = 0.0

    @staticmethod
    def of(study: Study) -> PrivacyPlan:
        return PrivacyPlan()

    def release_of(self, task_stage: str) -> Release | None:
        return None

    def releases(self) -> list[Release]:
        return []
