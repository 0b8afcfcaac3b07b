"""Whose membership is asked, and how sure is a model of them? Labelled patients who trained, and held-out ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from client.evaluation import predict
from client.splits import HELD_OUT, TRAIN
from client.store import Rows, SiteStore
from shared.models.multimodal import MultimodalModel

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Patients:
    """The P patients of a site who are attacked; those who watch training are neither in nor out, and are left out.

    Attributes:
        store: of the site.
        rows: (N,) their labelled cases.
        places: (N,) of which patient each case is, 0 to P - 1.
        trained: (P,) whether the patient trained the model.
        positive: (P,) whether any of the cases has the outcome.
    """

    store: SiteStore
    rows: Rows
    places: Rows
    trained: Flags
    positive: Flags

    @staticmethod
    def of(store: SiteStore) -> Patients:
        """All patients of a site with a labelled case that trains or is held out."""
        rows = np.flatnonzero(np.isin(store.case_splits.astype(str), [TRAIN, HELD_OUT]))
        _, first, places = np.unique(store.case_subjects[rows], return_index=True, return_inverse=True)
        positive = np.bincount(places, store.labels[rows], minlength=len(first)) > 0
        return Patients(store, rows, places, store.case_splits[rows[first]] == TRAIN, positive)

    def __len__(self) -> int:
        return len(self.trained)

    def rows_of(self, chosen: Flags) -> Rows:
        """The cases of some patients, (P,) flags."""
        return self.rows[chosen[self.places]]

    @cached_property
    def _cases(self) -> NDArray[np.int64]:
        return np.bincount(self.places, minlength=len(self))

    def mean(self, values: Floats) -> Floats:
        """(N,) values of cases as (P,) means of patients."""
        return np.bincount(self.places, values, minlength=len(self)) / self._cases

    def confidence(self, model: MultimodalModel, device: torch.device) -> Floats:
        """(N,) log odds that the model gives to the true outcome of each case: its loss, scaled to be near Gaussian.

        The logit scaling of LiRA (arXiv 2112.03570): log(p / (1 - p)) of the true class.
        """
        logits = predict(model, self.store, self.rows, device)
        return np.where(self.store.labels[self.rows] > 0.5, logits, -logits)
