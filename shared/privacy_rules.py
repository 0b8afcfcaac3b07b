"""Which studies cannot be private? Refused when a study is composed, and again when its models are built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from shared.config import PatientDPSGD, Study

_MAE = "Set objective=mae, or privacy.exempt=[pretrain], which leaves every patient of pretraining without a guarantee."


def check_private(study: Study, privacy: PatientDPSGD, path: str) -> None:
    """Raise ``ConfigError`` for settings under which one patient's influence has no bound or is let out unnoised."""
    pretrains = bool(study.pretrain.rounds) and "pretrain" not in privacy.exempt
    if not (pretrains or study.finetune.rounds):
        remedy = "Take pretrain out of it, or set privacy=none."
        raise ConfigError(f"{path}privacy.exempt", "must leave a stage private", value=privacy.exempt, remedy=remedy)
    if pretrains and study.objective.kind == "simclr":
        rule = "must not compare patients with each other: clipping does not bound NT-Xent"
        raise ConfigError(f"{path}objective", rule, value=study.objective.kind, remedy=_MAE)
    if study.image_modalities and not study.model.image.group_norm:
        rule = "must be true with privacy: BatchNorm mixes patients"
        raise ConfigError(f"{path}model.image.group_norm", rule, value=False, remedy="Set it to true.")
    if study.finetune.rounds and study.finetune.select == "best":
        rule = "must be last with privacy: tuning scores of every round would be released"
        raise ConfigError(f"{path}finetune.select", rule, value="best", remedy="Set finetune.select=last.")
    for feature in study.features.numeric if "clinical" in study.modalities else ():
        if not feature.is_bounded:
            rule = "must have a plausible range (low, high) with privacy, which standardises it"
            raise ConfigError(
                f"{path}features.{feature.name}", rule, remedy="Declare low and high from the literature."
            )
    if privacy.survey_share + privacy.evaluation_share >= 1.0:
        rule = "must be < 1: training needs the rest of the budget"
        value = privacy.survey_share + privacy.evaluation_share
        raise ConfigError(f"{path}privacy.survey_share + evaluation_share", rule, value=value)


def check_module(module: nn.Module, stage: str) -> None:
    """Raise ``ConfigError`` for a built objective in which the patients of a batch influence each other."""
    from torch.nn.modules.batchnorm import _NormBase

    if getattr(module, "mixes_examples", False):
        raise ConfigError(f"objective of {stage}", "must not mix patients with privacy", remedy=_MAE)
    for name, part in module.named_modules():
        if isinstance(part, _NormBase) and (part.track_running_stats or "Batch" in type(part).__name__):
            remedy = (
                "Choose a model with LayerNorm or GroupNorm, or model.image.group_norm=true where that replaces it."
            )
            rule = "must keep no statistics of a batch with privacy"
            raise ConfigError(f"model: {name}", rule, value=type(part).__name__, remedy=remedy)
