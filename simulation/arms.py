"""Which federations does a comparison run, in which order, and what does each start from?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shared.config import CLINICAL, NoSecureAggregation, Study
from simulation.config import CENTRALISED, FEDERATED, INPUTS, LOCAL, SCRATCH, Comparison


@dataclass(frozen=True)
class Arm:
    """One federation to run.

    Attributes:
        kind: federated, centralised, local or federated_scratch; ``inputs``: multimodal, image or clinical.
        site: of a local arm, the site that trains alone; else empty.
        trains, judges: site folders that train, and on whose held-out patients the result is stated.
        folder: of the arm, below the run's.
        pretrained: folder of an arm with the very same pretraining, which this arm takes over.
    """

    kind: str
    inputs: str
    site: str
    study: Study
    trains: tuple[Path, ...]
    judges: tuple[Path, ...]
    folder: Path
    pretrained: Path | None

    @property
    def name(self) -> str:
        return ".".join(part for part in (self.kind, self.site, self.inputs) if part)


def plan(study: Study, comparison: Comparison, sites: Sequence[Path], pooled: Path, run: Path) -> list[list[Arm]]:
    """The arms in lists that may run side by side; within a list later arms need earlier ones.

    Args:
        pooled: site folder with all patients, for the centralised arm.
    """
    inputs = _inputs(study, comparison)
    everyone = tuple(sites)
    chains = []
    for kind in comparison.arms:
        if kind == FEDERATED:
            chains.append(_chain(kind, "", study, inputs, everyone, everyone, run))
        elif kind == CENTRALISED:
            chains.append(_chain(kind, "", study, inputs, (pooled,), everyone, run))
        elif kind == LOCAL:
            chains += [_chain(kind, site.name, study, inputs, (site,), (site,), run) for site in sites]
        elif kind == SCRATCH:
            scratch = replace(study, pretrain=replace(study.pretrain, rounds=0))
            with_images = {name: parts for name, parts in inputs.items() if name != CLINICAL}
            for name in with_images:  # nothing is shared, so nothing need wait
                chains.append(_chain(kind, "", scratch, {name: with_images[name]}, everyone, everyone, run))
    return chains


def _inputs(study: Study, comparison: Comparison) -> dict[str, tuple[str, ...]]:
    """The modalities of each model, the one whose pretraining the others take over first."""
    if not comparison.inputs:
        fitting = [name for name, parts in INPUTS.items() if set(study.modalities) <= set(parts)]
        return {min(fitting, key=lambda name: len(INPUTS[name])): study.modalities}
    ordered = [name for name in INPUTS if name in comparison.inputs]
    return {name: tuple(m for m in study.modalities if m in INPUTS[name]) for name in ordered}


def _chain(
    kind: str,
    site: str,
    study: Study,
    inputs: dict[str, tuple[str, ...]],
    trains: tuple[Path, ...],
    judges: tuple[Path, ...],
    run: Path,
) -> list[Arm]:
    chain: list[Arm] = []
    for name, modalities in inputs.items():
        has_images = any(m != CLINICAL for m in modalities)
        own = replace(study, modalities=modalities)
        if len(trains) == 1:  # whose sum would be its own
            own = replace(own, secure_aggregation=NoSecureAggregation())
        if not has_images:
            own = replace(own, pretrain=replace(own.pretrain, rounds=0))
        first = next((arm for arm in chain if arm.study.pretrain.rounds), None)
        same = first is not None and own.image_modalities == first.study.image_modalities
        folder = run / "arms" / "/".join(part for part in (kind, site, name) if part)
        pretrained = first.folder if first is not None and same and own.pretrain.rounds else None
        chain.append(Arm(kind, name, site, own, trains, judges, folder, pretrained))
    return chain
