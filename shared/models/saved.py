"""How is a fine-tuned model kept? With the study and the statistics that made it, which is all that using it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.checkpoints import load_arrays, save_arrays
from shared.config import Study
from shared.errors import CheckpointError, ConfigError
from shared.knobs import from_json, to_json
from shared.statistics import Statistics
from shared.weights import Weights, write_weights

if TYPE_CHECKING:
    from shared.models.multimodal import MultimodalModel


def save_model(file: Path, study: Study, statistics: Statistics, weights: Weights) -> None:
    """Write a fine-tuned model with all that is needed to use it."""
    own = {name.removeprefix("model."): array for name, array in weights.items()}
    facts = {"kind": "model", "study": to_json(study), "statistics": to_json(statistics)}
    save_arrays(file, own, facts)


@dataclass(frozen=True)
class SavedModel:
    """A fine-tuned model as it was written: the study that made it, its statistics, and its weights."""

    study: Study
    statistics: Statistics
    weights: Weights


def read_model(file: Path) -> SavedModel:
    """The inverse of ``save_model``, but for the prefix of the weights' names.

    Raises:
        CheckpointError: a damaged file, or one that holds no fine-tuned model.
    """
    weights, facts = load_arrays(file)
    if facts.get("kind") != "model":
        raise CheckpointError(str(file), "must hold a fine-tuned model", remedy="Name a run's model.safetensors.")
    try:
        study, statistics = from_json(Study, facts["study"]), from_json(Statistics, facts["statistics"])
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error.name}", error.rule, value=error.value) from None
    return SavedModel(study, statistics, weights)


def load_model(file: Path) -> tuple[MultimodalModel, Study]:
    """A fine-tuned model, ready to predict, and the study that made it; raises as ``read_model``."""
    from shared.models.multimodal import MultimodalModel  # and torch, which keeping a model does without

    saved = read_model(file)
    model = MultimodalModel(saved.study, saved.statistics)
    write_weights(model, saved.weights)
    return model.eval(), saved.study
