"""Which objective does a stage of a study train?"""

from __future__ import annotations

import torch

from shared.config import FINETUNE, MAE, Study
from shared.objectives.mae import MAEObjective
from shared.objectives.objective import Objective
from shared.objectives.simclr import SimCLRObjective
from shared.objectives.supervised import SupervisedObjective
from shared.privacy import PrivacyPlan
from shared.privacy_rules import check_module
from shared.statistics import Statistics


def build_objective(study: Study, stage: str, statistics: Statistics) -> Objective:
    """The objective of a stage with weights drawn from the study's seed, the same on every machine.

    Raises:
        ConfigError: the study wants privacy of this stage, and the model cannot give it: at the coordinator before
            anything runs, and at every site before anything is trained, whatever the coordinator found.
    """
    objective = _drawn(study, stage, statistics)
    if PrivacyPlan.of(study).release_of(stage) is not None:
        check_module(objective, stage)
    return objective


def _drawn(study: Study, stage: str, statistics: Statistics) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        if stage == FINETUNE:
            return SupervisedObjective(study, statistics)
        if isinstance(study.objective, MAE):
            return MAEObjective(study, study.objective, study.pretrain.augmentation)
        return SimCLRObjective(study, study.objective, study.pretrain.augmentation)
