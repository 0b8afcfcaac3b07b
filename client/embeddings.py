"""How often is a scan encoded? Once for all rounds where the encoders are not trained: the heads need no more."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.optimizers import encoder_rate
from client.store import Rows, SiteStore
from shared.config import Study
from shared.models.images import embedding_width, encode
from shared.objectives.objective import Objective
from shared.objectives.supervised import SupervisedObjective
from shared.weights import hash_weights, travelling

_BATCH = 256

Embeddings = dict[str, NDArray[np.float32]]  # per modality (N, D), a row for each row of the pixels
# Of each store the newest, with the digest of the encoders: where those do change, older ones would fill the memory.
_newest: WeakKeyDictionary[SiteStore, tuple[str, Embeddings]] = WeakKeyDictionary()


def with_embeddings(store: SiteStore, study: Study, objective: Objective, device: torch.device) -> SiteStore:
    """The store with embeddings in the place of its cases' scans, where fine-tuning leaves the encoders as they came.

    The encoders are then in evaluation mode, as frozen ones ought to be, and see the scans as they are: augmentation
    is for those that are trained.
    """
    frozen = bool(study.image_modalities) and encoder_rate(study, study.finetune) == 0.0
    if not frozen or not isinstance(objective, SupervisedObjective):
        return store
    encoders, digest = objective.model.encoders, hashlib.sha256()
    hash_weights(digest, {name: weight.detach().cpu().numpy() for name, weight in travelling(encoders).items()})
    known, embeddings = _newest.get(store, ("", {}))
    if known != digest.hexdigest():
        embeddings = _embeddings(store, encoders, device)
        _newest[store] = (digest.hexdigest(), embeddings)
    return replace(store, embeddings=embeddings)


def _embeddings(store: SiteStore, encoders: nn.ModuleDict, device: torch.device) -> Embeddings:
    """Rows of scans of no case are zero."""
    encoders.eval()
    return {
        name: _encoded(store, encoders[name], np.unique(scans[scans >= 0]), device)
        for name, scans in store.case_scans.items()
    }


def _encoded(store: SiteStore, encoder: nn.Module, rows: Rows, device: torch.device) -> NDArray[np.float32]:
    assert store.pixels is not None
    found = np.zeros((len(store.pixels.values), embedding_width(encoder)), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            scans = torch.from_numpy(store.pixels.values[some][:, None])
            found[some] = encode(encoder, scans.to(device)).float().cpu().numpy()
    return found
