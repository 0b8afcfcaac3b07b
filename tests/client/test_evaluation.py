"""Are a site's scores those of its cases, and is its intercept its own?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import log_loss

from client import evaluation as module
from client.evaluation import evaluate, fit_intercept, predict
from client.splits import HELD_OUT, TRAIN, TUNING
from client.store import SiteStore, open_store
from shared.config import FINETUNE
from shared.models.multimodal import MultimodalModel
from shared.objectives.registry import build_objective
from shared.site_folder import SUBJECT_SPLITS, SiteFolder, write_table
from shared.statistics import Statistics
from tests.factories import make_study, small_site

CPU = torch.device("cpu")
STUDY = make_study()


def model_of() -> MultimodalModel:
    model = build_objective(STUDY, FINETUNE, Statistics((60.0, 110.0), (10.0, 5.0), 0.5)).get_submodule("model")
    assert isinstance(model, MultimodalModel)
    return model


def fix_splits(folder: SiteFolder, splits: dict[int, str]) -> SiteStore:
    frame = pd.DataFrame({"subject_id": list(splits), "split": list(splits.values())})
    write_table(folder.path / "subject_splits.parquet", frame, SUBJECT_SPLITS)
    return open_store(folder.path, STUDY)


def test_predictions_do_not_depend_on_how_cases_are_batched(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    store, model, rows = open_store(site.path, STUDY), model_of(), np.arange(12)
    whole = predict(model, store, rows, CPU)
    monkeypatch.setattr(module, "_BATCH", 5)
    np.testing.assert_allclose(predict(model, store, rows, CPU), whole, rtol=1e-4, atol=1e-5)
    order = np.array([7, 2, 11])
    np.testing.assert_allclose(predict(model, store, order, CPU), whole[order], rtol=1e-4, atol=1e-5)


def test_predicting_uses_no_dropout_and_no_random_number(site: SiteFolder) -> None:
    store, model = open_store(site.path, STUDY), model_of().train()
    state = torch.random.get_rng_state()
    one, two = (predict(model, store, np.arange(12), CPU) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_scores_are_those_of_the_cases_of_the_split(site: SiteFolder) -> None:
    store = fix_splits(site, {i: HELD_OUT if i <= 5 else TRAIN for i in range(1, 13)})
    model = model_of()
    rows = np.flatnonzero(store.case_subjects <= 5)
    risks = 1 / (1 + np.exp(-predict(model, store, rows, CPU)))
    scores = evaluate(model, store, HELD_OUT, CPU)
    assert scores.cases == 5
    assert scores.positives.sum() == 2
    assert scores.log_loss == pytest.approx(log_loss(store.labels[rows], risks) * 5, rel=1e-5)


def test_an_empty_split_has_no_scores(site: SiteFolder) -> None:
    store = fix_splits(site, dict.fromkeys(range(1, 13), TRAIN))
    assert evaluate(model_of(), store, TUNING, CPU).cases == 0


@pytest.mark.parametrize("positives", [0, 1, 6, 11, 12])
def test_the_intercept_meets_the_sites_own_prevalence(tmp_path: Path, positives: int) -> None:
    tables = small_site()
    tables.labels["detection"]["boolean_value"] = np.arange(12) < positives
    store = fix_splits(tables.write(tmp_path / "s"), dict.fromkeys(range(1, 13), TRAIN))
    model = model_of()
    shift = fit_intercept(model, store, CPU)
    logits = predict(model, store, np.arange(12), CPU) + shift
    expected = (1 / (1 + np.exp(-logits))).sum() + 1 / (1 + np.exp(-shift))
    assert expected == pytest.approx(positives + 0.5, abs=1e-6)


def test_a_site_that_does_not_train_keeps_the_common_intercept(site: SiteFolder) -> None:
    store = fix_splits(site, dict.fromkeys(range(1, 13), HELD_OUT))
    assert fit_intercept(model_of(), store, CPU) == 0.0
