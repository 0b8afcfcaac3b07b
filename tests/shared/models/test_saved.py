"""Is a saved model the model that it was, or refused?"""

from pathlib import Path

import pytest
import torch

from shared.checkpoints import save_arrays
from shared.config import FINETUNE
from shared.errors import CheckpointError
from shared.models.multimodal import MultimodalModel
from shared.models.saved import load_model, save_model
from shared.objectives.registry import build_objective
from shared.statistics import Statistics
from shared.weights import read_weights
from tests.factories import make_cases, make_study


def test_a_saved_model_predicts_as_it_did(tmp_path: Path) -> None:
    study = make_study()
    statistics = Statistics((60.0, 130.0), (10.0, 20.0), 0.3)
    objective = build_objective(study, FINETUNE, statistics).eval()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_model(tmp_path / "m", study, statistics, read_weights(objective))
    model, loaded = load_model(tmp_path / "m")
    cases = make_cases()
    assert isinstance(model, MultimodalModel)
    assert not model.training
    assert loaded == study
    assert torch.equal(model(cases), objective.model(cases))  # type: ignore[union-attr, operator]


def test_a_checkpoint_that_is_no_model_is_refused(tmp_path: Path) -> None:
    save_arrays(tmp_path / "x", {}, {"kind": "test"})
    with pytest.raises(CheckpointError, match=r"must hold a fine-tuned model\. Name a run's model\.safetensors"):
        load_model(tmp_path / "x")


def test_a_model_of_a_study_that_no_longer_loads_is_refused(tmp_path: Path) -> None:
    save_arrays(tmp_path / "x", {}, {"kind": "model", "study": '{"sead":1}', "statistics": "{}"})
    with pytest.raises(CheckpointError, match="sead is not a setting"):
        load_model(tmp_path / "x")
