"""May an update leave? Before it does, the site attacks it with what the coordinator would have: no shadow models.

The attack needs two predictions of each labelled patient, of the weights that came and of those that would go; so it
is affordable in every fine-tuning round, and each round's update is a release of its own.
"""

from __future__ import annotations

import logging
from typing import Protocol

import torch

from client.audit.attacks import loss_threshold
from client.audit.patients import Floats, Patients
from client.audit.strength import Rate, found_with, level_of_each
from client.site import OFF, VETO
from client.store import SiteStore
from shared.errors import OwnDataError
from shared.models.multimodal import MultimodalModel

FALSE_RATE = 0.01
FEWEST = 20  # held-out patients; with fewer, not even one false alarm in twenty can be told
_ATTACKS = 2

log = logging.getLogger(__name__)


class UnsafeUpdateError(OwnDataError):
    """An update that the site withholds. What was measured stays in its log: others learn that it was withheld."""


class Gate(Protocol):
    """What a round of training passes before its update leaves."""

    def check(self) -> None:
        """Look at the weights that would leave; raises ``UnsafeUpdateError`` where the site's policy says so."""


class NoGate:
    """The gate of a site that asks for none, and of rounds that train on unlabelled scans."""

    def check(self) -> None:
        """Nothing is looked at."""


class AuditGate:
    """Attacks an update: by the loss, and by how much the round lowered it.

    The change of the loss is, to first order, the product of the update with the patient's own gradient; the weights
    that came serve as the reference by which hard patients are told from strangers (Watson et al. 2022,
    arXiv 2111.08440).
    """

    def __init__(self, model: MultimodalModel, store: SiteStore, device: torch.device) -> None:
        self._model, self._device, self._settings, self._name = model, device, store.settings, store.name
        self._patients = Patients.of(store)
        self._before = self._log_likelihood()

    def check(self) -> None:
        limit, others = self._settings.audit_tpr_limit, int((~self._patients.trained).sum())
        if others < FEWEST:
            self._object(f"must be judged on at least {FEWEST} held-out patients", others)
            return
        worst = self._worst()
        found = f"{worst.found:.1%} of those who trained, surely {worst.low:.1%}"
        log.info("%s: at %d false alarm(s) of %d an attack finds %s", self._audited, worst.false_alarms, others, found)
        if worst.low > limit:
            self._object(f"must give away at most {limit:g} of the patients (site.yaml: audit_tpr_limit)", worst.low)

    def _worst(self) -> Rate:
        """The strongest attack, at 1 % false alarms, or at one where that would be fewer."""
        after, trained = self._log_likelihood(), self._patients.trained
        alarms = max(int(FALSE_RATE * (~trained).sum()), 1)
        rates = [
            found_with(scores[trained], scores[~trained], alarms, level_of_each(_ATTACKS))
            for scores in (after, after - self._before)
        ]
        return max(rates, key=lambda rate: rate.low)

    def _log_likelihood(self) -> Floats:
        return self._patients.mean(loss_threshold(self._patients.confidence(self._model, self._device)))

    def _object(self, rule: str, found: float) -> None:
        error = UnsafeUpdateError(self._audited, rule, value=round(found, 4))
        if self._settings.audit == VETO:
            raise error
        log.warning("%s", error)

    @property
    def _audited(self) -> str:
        return f"site {self._name}: audit of the update"


def open_gate(model: MultimodalModel, store: SiteStore, device: torch.device) -> Gate:
    """The gate that site.yaml asks for, given the weights with which the round begins."""
    return NoGate() if store.settings.audit == OFF else AuditGate(model, store, device)
