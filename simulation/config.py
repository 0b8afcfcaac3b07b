"""What can a researcher set beyond the study itself? The cohort, the comparison, and how to run on this machine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from shared.config import CLINICAL, IMAGE_MODALITIES, Study
from shared.errors import ConfigError
from shared.knobs import knob
from simulation.cohorts.config import Cohort, FolderCohort, IstCohort, OctCohort, SyntheticCohort

FEDERATED, CENTRALISED, LOCAL, SCRATCH = "federated", "centralised", "local", "federated_scratch"
INPUTS = {"multimodal": (*IMAGE_MODALITIES, CLINICAL), "image": IMAGE_MODALITIES, "clinical": (CLINICAL,)}


@dataclass(frozen=True)
class Comparison:
    """Which arms are run beside the federated one."""

    arms: tuple[str, ...] = knob((FEDERATED,), "who trains together", choices=[FEDERATED, CENTRALISED, LOCAL, SCRATCH])
    inputs: tuple[str, ...] = knob(
        (), "what the model sees; nothing named: the study's modalities", choices=list(INPUTS)
    )

    def check_consistent(self, path: str) -> None:
        if not self.arms:
            raise ConfigError(f"{path}arms", "must name at least one arm")
        if len(set(self.arms)) != len(self.arms):
            raise ConfigError(f"{path}arms", "must name each arm once", value=list(self.arms))


@dataclass(frozen=True)
class Run:
    """Where results go."""

    dir: str = knob("", "folder of the run; nothing: a new folder under runs")


@dataclass(frozen=True)
class Simulation:
    """How this machine does the work; none of it changes what is computed beyond rounding."""

    backend: str = knob("local", "local: in this process; ray: Flower's engine", choices=["local", "ray"])
    workers: int = knob(
        0, "processes that run arms side by side; 0: one a core, as far as there are arms", ge=0, le=256
    )
    cache: str = knob("runs/cohorts", "folder in which built cohorts are kept")


@dataclass(frozen=True)
class Experiment(Study):
    """A study with a cohort to try it on."""

    cohort: Cohort = knob(SyntheticCohort())
    comparison: Comparison = knob(Comparison())
    run: Run = knob(Run())
    simulation: Simulation = knob(Simulation())
    resume: str = knob("", "folder of an interrupted run to go on with")

    @property
    def study(self) -> Study:
        """What the sites receive."""
        return Study(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Study)})

    def check_consistent(self, path: str) -> None:
        super().check_consistent(path)
        missing = [name for name in self.comparison.inputs if not set(INPUTS[name]) & set(self.modalities)]
        if missing:
            raise ConfigError("comparison.inputs", "must be among the study's modalities", value=missing[0])
        if SCRATCH in self.comparison.arms and not self.pretrain.rounds:
            remedy = "Set pretrain.rounds, or leave federated_scratch out."
            raise ConfigError("comparison.arms", "federated_scratch needs a pretraining stage", remedy=remedy)
        if SCRATCH in self.comparison.arms and self.comparison.inputs == (CLINICAL,):
            remedy = "Add multimodal or image to comparison.inputs, or leave federated_scratch out."
            raise ConfigError("comparison.arms", "federated_scratch needs inputs with images", remedy=remedy)


__all__ = ["Comparison", "Experiment", "FolderCohort", "IstCohort", "OctCohort", "Run", "Simulation", "SyntheticCohort"]
