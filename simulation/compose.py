"""How do overrides on a command line become an experiment? Hydra composes configs/, the dataclasses judge."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from shared.config import MAE, Features, Model, SimCLR, Strategy
from shared.knobs import Tree, dump, load
from simulation.cohorts.config import FolderCohort, IstCohort, OctCohort, SyntheticCohort
from simulation.config import Comparison, Experiment

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_GROUPS: dict[str, dict[str, Tree]] = {
    "cohort": {"synthetic": SyntheticCohort(), "ist": IstCohort(), "oct": OctCohort(), "folders": FolderCohort()},
    "objective": {"simclr": SimCLR(), "mae": MAE()},
    "features": {"features": Features()},
    "model": {"model": Model()},
    "strategy": {"strategy": Strategy()},
    "comparison": {"comparison": Comparison()},
}


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
