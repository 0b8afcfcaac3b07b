"""With which weights does a stage begin? Drawn from the study's seed, encoders from the files that the study names."""

from __future__ import annotations

from pathlib import Path

from server.strategies.registry import build_strategy
from shared.config import PRETRAIN, Study
from shared.models.weights import start_encoder
from shared.objectives.objective import Objective
from shared.objectives.registry import build_objective
from shared.statistics import Statistics
from shared.weights import Weights, read_weights


def initial_weights(study: Study, stage: str, statistics: Statistics) -> Weights:
    """The weights of a stage's objective before its first round."""
    return read_weights(_started(study, stage, statistics))


def check_study(study: Study) -> None:
    """Build what a study will need, so that what only building shows is told before anything runs.

    Raises:
        FedretinaError: of the strategy, the model, or the weights that it starts from.
    """
    build_strategy(study)
    for stage in study.training:
        _started(study, stage, Statistics.neutral(study))


def _started(study: Study, stage: str, statistics: Statistics) -> Objective:
    objective = build_objective(study, stage, statistics)
    encoders = objective.get_submodule("encoders" if stage == PRETRAIN else "model.encoders")
    for name, file in study.model.image.weights.items():
        if name in study.image_modalities:
            start_encoder(encoders.get_submodule(name), Path(file), name)
    return objective
