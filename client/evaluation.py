"""How well do some weights predict this site's outcomes?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from client.splits import TRAIN
from client.store import Rows, SiteStore
from shared.metrics import Scores, empty_scores, score
from shared.models.multimodal import MultimodalModel

_BATCH = 256


def predict(model: MultimodalModel, store: SiteStore, rows: Rows, device: torch.device) -> NDArray[np.float64]:
    """Logits of some labelled cases, (N,)."""
    model.eval()
    with torch.inference_mode():
        parts = [
            model(store.take_cases(rows[start : start + _BATCH]).to(device)).double().cpu().numpy()
            for start in range(0, len(rows), _BATCH)
        ]
    return np.concatenate(parts) if parts else np.empty(0)


def evaluate(model: MultimodalModel, store: SiteStore, split: str, device: torch.device) -> Scores:
    """Scores of one split of a site; of no case when the split is empty."""
    rows = store.rows_of_cases(split)
    if not len(rows):
        return empty_scores()
    return score(predict(model, store, rows, device), store.labels[rows].astype(np.float64))


def fit_intercept(model: MultimodalModel, store: SiteStore, device: torch.device) -> float:
    """The shift of the logits at which mean predicted risk meets the site's own training cases.

    Prevalence differs by hospital for reasons that are in no input; without its own intercept a site bends the shared
    weights to explain it. It is fitted anew whenever weights arrive, so it need not be kept and never leaves.
    """
    rows = store.rows_of_cases(TRAIN)
    if not len(rows):
        return 0.0
    logits, labels = predict(model, store, rows, device), store.labels[rows].astype(np.float64)
    # Half a case of each class keeps the intercept finite where a class is absent.
    target, shift = labels.sum() + 0.5, 0.0
    for _ in range(50):
        risks = 1.0 / (1.0 + np.exp(-np.clip(logits + shift, -60.0, 60.0)))
        expected = risks.sum() + 1.0 / (1.0 + np.exp(-shift))
        slope = (risks * (1 - risks)).sum() + 1e-3
        step = float(np.clip((target - expected) / slope, -1.0, 1.0))
        shift += step
        if abs(step) < 1e-9:
            break
    return shift
