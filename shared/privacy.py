"""What does a study promise the patients of every site? One frozen plan of all that is released."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.accounting import Release
from shared.config import Study


@dataclass(frozen=True)
class PrivacyPlan:
    """The plan of a study without privacy: nothing is noised, and no ε bounds what may be learned."""

    delta: float = 0.0
    epsilon: float = math.inf

    @staticmethod
    def of(study: Study) -> PrivacyPlan:
        """The plan of a study."""
        return PrivacyPlan()

    def release_of(self, stage: str) -> Release | None:
        """What one message of a stage costs; None where it is not noised."""
        return None

    def releases(self) -> list[Release]:
        """All private releases of the study at one site."""
        return []
