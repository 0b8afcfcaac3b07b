"""Which federations does a comparison run, what does each start from, and which comparisons are refused?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.knobs import dump, load
from simulation.arms import Arm, plan
from simulation.config import Comparison, Experiment
from tests.factories import STUDY, changed, make_study

SITES = (Path("/c/east"), Path("/c/north"), Path("/c/west"))
POOLED, RUN = Path("/r/pooled"), Path("/r")
ALL = ("federated", "centralised", "local", "federated_scratch")
EVERY = ("multimodal", "image", "clinical")


def arms_of(*arms: str, inputs: tuple[str, ...] = EVERY, changes: dict[str, Any] | None = None) -> list[list[Arm]]:
    return plan(make_study(changes), Comparison(arms, inputs), SITES, POOLED, RUN)


def flat(chains: list[list[Arm]]) -> list[Arm]:
    return [arm for chain in chains for arm in chain]


def test_full_comparison_has_each_arm_with_each_input_once() -> None:
    names = [arm.name for arm in flat(arms_of(*ALL))]
    assert sorted(names) == sorted(
        [
            *[f"{kind}.{inputs}" for kind in ("federated", "centralised") for inputs in EVERY],
            *[f"local.{site.name}.{inputs}" for site in SITES for inputs in EVERY],
            "federated_scratch.multimodal",
            "federated_scratch.image",  # without images there is no pretraining to leave out
        ]
    )


def test_folders_are_distinct_and_below_the_run() -> None:
    folders = [arm.folder for arm in flat(arms_of(*ALL))]
    assert len(set(folders)) == len(folders)
    assert all(folder.is_relative_to(RUN / "arms") for folder in folders)


def test_arm_of_one_site_is_not_a_sum() -> None:
    changes = {"secure_aggregation": {"kind": "secagg"}, "strategy": {"norm_limit": 0.0}}
    for arm in flat(arms_of(*ALL, changes=changes)):
        assert arm.study.secure_aggregation.kind == ("secagg" if len(arm.trains) > 1 else "none"), arm.name


def test_who_trains_and_who_judges() -> None:
    for arm in flat(arms_of(*ALL)):
        alone = tuple(site for site in SITES if site.name == arm.site)
        expected = {
            "federated": (SITES, SITES),
            "federated_scratch": (SITES, SITES),
            "centralised": ((POOLED,), SITES),  # judged where the others are
            "local": (alone, alone),
        }
        assert (arm.trains, arm.judges) == expected[arm.kind]
        assert bool(arm.site) == (arm.kind == "local")


def test_modalities_follow_the_inputs() -> None:
    expected = {"multimodal": ("oct", "ir", "clinical"), "image": ("oct", "ir"), "clinical": ("clinical",)}
    assert all(arm.study.modalities == expected[arm.inputs] for arm in flat(arms_of(*ALL)))
    narrow = flat(arms_of("federated", changes={"modalities": ["oct", "clinical"]}))
    assert [arm.study.modalities for arm in narrow] == [("oct", "clinical"), ("oct",), ("clinical",)]


@pytest.mark.parametrize(
    ("modalities", "name"),
    [
        (["oct", "ir", "clinical"], "multimodal"),
        (["oct", "clinical"], "multimodal"),
        (["oct", "ir"], "image"),
        (["oct"], "image"),
        (["clinical"], "clinical"),
    ],
)
def test_comparison_none_is_the_study_as_it_stands(modalities: list[str], name: str) -> None:
    changes = {"modalities": modalities, "pretrain.rounds": 0}
    ((arm,),) = arms_of("federated", inputs=(), changes=changes)
    assert (arm.name, arm.study, arm.pretrained) == (f"federated.{name}", make_study(changes), None)


def test_pretraining_is_shared_by_equal_image_modalities_of_one_federation() -> None:
    for chain in arms_of("federated", "centralised", "local"):
        multimodal, image, clinical = chain
        assert multimodal.pretrained is None
        assert image.pretrained == multimodal.folder
        assert clinical.pretrained is None
        assert clinical.study.pretrain.rounds == 0
        assert {(arm.kind, arm.site) for arm in chain} == {(multimodal.kind, multimodal.site)}


def test_pretraining_is_taken_over_from_an_arm_that_runs_before() -> None:
    for chain in arms_of(*ALL):
        for place, arm in enumerate(chain):
            assert arm.pretrained is None or arm.pretrained in [earlier.folder for earlier in chain[:place]]
            if arm.pretrained is not None:
                (source,) = (earlier for earlier in chain if earlier.folder == arm.pretrained)
                assert source.study.image_modalities == arm.study.image_modalities
                assert source.study.pretrain == arm.study.pretrain
                assert source.trains == arm.trains


def test_scratch_has_no_pretraining_and_differs_in_nothing_else() -> None:
    federated = {arm.inputs: arm for arm in flat(arms_of("federated"))}
    for arm in flat(arms_of("federated_scratch")):
        assert arm.study.pretrain.rounds == 0
        assert arm.pretrained is None
        theirs, ours = dump(federated[arm.inputs].study), dump(arm.study)
        assert {name for name in ours if ours[name] != theirs[name]} == {"pretrain"}


def test_arms_that_nothing_joins_may_run_side_by_side() -> None:
    assert [len(chain) for chain in arms_of("federated", "local")] == [3, 3, 3, 3]
    assert [len(chain) for chain in arms_of("federated_scratch")] == [1, 1]


# Comparisons that are refused


def experiment(changes: dict[str, Any]) -> Experiment:
    return load(Experiment, changed(STUDY, changes))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"comparison.arms": []}, "comparison.arms"),
        ({"comparison.arms": ["federated", "federated"]}, "comparison.arms"),
        ({"comparison.arms": ["everyone"]}, "comparison.arms"),
        ({"comparison.inputs": ["scans"]}, "comparison.inputs"),
        ({"comparison.inputs": ["image"], "modalities": ["clinical"], "pretrain.rounds": 0}, "comparison.inputs"),
        ({"comparison.inputs": ["clinical"], "modalities": ["oct"]}, "comparison.inputs"),
        ({"comparison.arms": ["federated_scratch"], "pretrain.rounds": 0}, "comparison.arms"),
        ({"comparison.arms": ["federated_scratch"], "comparison.inputs": ["clinical"]}, "comparison.arms"),
    ],
)
def test_contradicting_comparison_is_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(changes)
    assert caught.value.name.startswith(name)


def test_valid_comparison_loads() -> None:
    arms, inputs = ["federated", "federated_scratch"], ["image", "clinical"]
    assert experiment({"comparison": {"arms": arms, "inputs": inputs}}).comparison == Comparison(
        tuple(arms), tuple(inputs)
    )
