"""How do overrides on a command line become an experiment? Hydra composes configs/, the dataclasses judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from shared.config import (
    MAE,
    Features,
    Model,
    NoPrivacy,
    NoSecureAggregation,
    PatientDPSGD,
    SecAgg,
    SimCLR,
    Strategy,
    Study,
)
from shared.errors import ConfigError
from shared.knobs import Tree, dump, load
from simulation.cohorts.config import FolderCohort, IstCohort, OctCohort, SyntheticCohort
from simulation.config import Comparison, Experiment

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CONFIG, HYDRA = "config", "1.3"  # the file that Hydra begins with, and the behaviour that it is asked for
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException)
_GROUPS: dict[str, dict[str, Tree]] = {
    "cohort": {"synthetic": SyntheticCohort(), "ist": IstCohort(), "oct": OctCohort(), "folders": FolderCohort()},
    "objective": {"simclr": SimCLR(), "mae": MAE()},
    "features": {"features": Features()},
    "model": {"model": Model()},
    "strategy": {"strategy": Strategy()},
    "privacy": {"none": NoPrivacy(), "patient_dpsgd": PatientDPSGD()},
    "secure_aggregation": {"none": NoSecureAggregation(), "secagg": SecAgg()},
    "comparison": {"comparison": Comparison()},
}
_OF_SIMULATIONS = {field.name for field in fields(Experiment)} - {field.name for field in fields(Study)}


def register() -> None:
    """Give Hydra every knob with its default, so that the files of configs/ hold only what differs.

    Plain mappings rather than dataclasses: types and ranges are checked once, by ``shared.knobs``.
    """
    store = ConfigStore.instance()
    top = {name: value for name, value in dump(Experiment()).items() if name not in _GROUPS}
    store.store(name="base", node=_open_mappings(OmegaConf.create(top)))
    for group, trees in _GROUPS.items():
        for name, tree in trees.items():
            store.store(group=group, name=f"base_{name}", node=_open_mappings(OmegaConf.create(dump(tree))))


def _open_mappings(node: DictConfig) -> DictConfig:
    """Let an override put names of its own into the mappings among the knobs, which are empty by default."""
    if not node:
        OmegaConf.set_struct(node, False)
    for child in node.values():
        if isinstance(child, DictConfig):
            _open_mappings(child)
    return node


def to_experiment(composed: DictConfig) -> Experiment:
    """The experiment of a composed configuration; raises ``ConfigError``."""
    data = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(data, dict)
    return load(Experiment, {str(name): value for name, value in data.items()})


def compose_experiment(overrides: Sequence[str]) -> Experiment:
    """The experiment of some overrides, outside of ``fedretina simulate``; raises ``ConfigError``."""
    register()
    try:
        with initialize_config_dir(str(CONFIGS), version_base=HYDRA):
            return to_experiment(compose(CONFIG, overrides=list(overrides)))
    except COMPOSE_ERRORS as error:
        raise ConfigError("overrides", f"must compose: {one_line(error)}") from None


def compose_study(overrides: Sequence[str]) -> Study:
    """The study of some overrides, without a cohort to try it on; raises ``ConfigError``."""
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0].partition(".")[0]
        if name in _OF_SIMULATIONS:
            raise ConfigError(name, "is a setting of simulations", remedy="Leave it out: a study has sites of its own.")
    # Which arms an experiment compares says nothing about its study, and must not stand in its way.
    return compose_experiment(["comparison=none", *overrides]).study


def one_line(error: BaseException) -> str:
    """An error on one line: Hydra's and OmegaConf's run over several, and so do the faults of a site."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith(("full_key", "object_type", "reference_type")))
