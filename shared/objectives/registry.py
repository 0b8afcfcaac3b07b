"""Which objective does a stage of a study train?"""

from __future__ import annotations

import torch

from shared.config import FINETUNE, MAE, Study
from shared.objectives.mae import MAEObjective
from shared.objectives.objective import Objective
from shared.objectives.simclr import SimCLRObjective
from shared.objectives.supervised import SupervisedObjective
from shared.statistics import Statistics


def build_objective(study: Study, stage: str, statistics: Statistics) -> Objective:
    """The objective of a stage with weights drawn from the study's seed, the same on every machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed)
        if stage == FINETUNE:
            return SupervisedObjective(study, statistics)
        if isinstance(study.objective, MAE):
            return MAEObjective(study, study.objective, study.pretrain.augmentation)
        return SimCLRObjective(study, study.objective, study.pretrain.augmentation)
