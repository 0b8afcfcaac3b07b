"""Do overrides become the experiment they say? Every file of configs/ composes, every knob can be reached."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from shared.config import SecAgg
from shared.errors import ConfigError
from simulation import privacy_benchmark, secure_aggregation_benchmark
from simulation.compose import CONFIGS, register, to_experiment
from simulation.config import Experiment

GROUPS = sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir())
KINDS = {"four_hospitals": "synthetic", "eight_hospitals": "synthetic", "simclr_patient": "simclr"}
CHOICES = sorted((file.parent.name, file.stem) for file in CONFIGS.glob("*/*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def composed(*overrides: str) -> dict[str, Any]:
    data = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    assert isinstance(data, dict)
    return {str(name): value for name, value in data.items()}


def experiment(*overrides: str) -> Experiment:
    return to_experiment(compose("config", list(overrides)))


def test_groups_are_those_of_the_command_line() -> None:
    assert {"cohort", "features", "model", "objective", "strategy", "comparison", "experiment"} <= set(GROUPS)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_loads(group: str, choice: str) -> None:
    pretraining = ["pretrain.rounds=1", "images={height: 64, width: 64}"]
    loaded = experiment(f"{group}={choice}", *(pretraining if group in ("objective", "comparison") else []))
    part = getattr(loaded, group, None)
    if group in ("cohort", "objective"):
        assert part is not None
        assert part.kind == KINDS.get(choice, choice)
    elif group == "strategy":
        assert part is not None
        assert part.name == choice
    elif group == "experiment":
        assert loaded.name == choice


@pytest.mark.parametrize("name", [file.stem for file in sorted((CONFIGS / "experiment").glob("*.yaml"))])
def test_every_experiment_takes_another_seed_strategy_and_comparison(name: str) -> None:
    for strategy in ("fedavg", "fedprox"):
        loaded = experiment(f"experiment={name}", f"strategy={strategy}", "comparison=none", "seed=7")
        assert (loaded.seed, loaded.strategy.name, loaded.comparison.arms) == (7, strategy, ("federated",))


@pytest.mark.parametrize("name", [file.stem for file in sorted((CONFIGS / "experiment").glob("*.yaml"))])
@pytest.mark.parametrize(("group", "choice"), [each for each in CHOICES if each[0] in ("cohort", "objective")])
def test_every_experiment_takes_another_cohort_and_objective(name: str, group: str, choice: str) -> None:
    part = getattr(experiment(f"experiment={name}", f"{group}={choice}"), group)
    assert part.kind == KINDS.get(choice, choice)


def test_the_demo_takes_every_override_of_the_readme() -> None:
    readme = (CONFIGS.parent / "README.md").read_text()
    paragraph = next(part for part in readme.split("\n\n") if part.startswith("Everything is an override"))
    found = [quoted for quoted in re.findall("`([^`]+)`", paragraph) if "=" in quoted and "fedretina" not in quoted]
    assert len(found) > 10
    for overrides in found:
        loose = ["objective=mae"] if "privacy=" in overrides else []  # as the README says of pretraining
        experiment("experiment=demo", *loose, *shlex.split(overrides))


def test_no_file_of_configs_is_left_untested() -> None:
    files = {file for file in CONFIGS.rglob("*.yaml") if file.parent.name != "site"}
    assert files == {CONFIGS / "config.yaml", *(CONFIGS / group / f"{choice}.yaml" for group, choice in CHOICES)}


def test_bare_knobs_have_the_defaults_of_the_dataclasses() -> None:
    bare = ["features=base_features", "model=base_model", "strategy=base_strategy", "comparison=base_comparison"]
    assert experiment(*bare, "cohort=base_synthetic", "objective=base_simclr") == Experiment()


def knobs(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every knob below a tree by its dotted name, with its value."""
    for field in dataclasses.fields(tree):
        value = getattr(tree, field.name)
        if dataclasses.is_dataclass(value):
            yield from knobs(value, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", value


def another(value: Any) -> Any:
    """A value of the same type that is not the given one; ranges do not matter here."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    return ["other"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective=simclr", "cohort=synthetic"],
        ["objective=mae", "cohort=ist"],
        ["objective=mae", "cohort=oct"],
        ["objective=simclr", "cohort=folders"],
    ],
)
def test_every_knob_can_be_overridden(overrides: list[str]) -> None:
    found = dict(knobs(experiment(*overrides)))
    plain = {name: value for name, value in found.items() if not isinstance(value, dict)}
    assert len(plain) > 80
    changed = {name: another(value) for name, value in plain.items()}
    data = composed(*overrides, *(f"{name}={json.dumps(value)}" for name, value in changed.items()))
    for name, value in changed.items():
        place: Any = data
        for part in name.split("."):
            place = place[part]
        assert place == value, name


@pytest.mark.parametrize("name", ["strategy.arguments", "model.image.arguments", "model.image.weights"])
def test_mappings_take_names_of_their_own(name: str) -> None:
    place: Any = composed(f"{name}={{oct: 3}}")
    for part in name.split("."):
        place = place[part]
    assert place["oct"] == 3


def test_experiment_file_yields_to_the_command_line() -> None:
    assert experiment("experiment=demo", "finetune.rounds=99", "images.height=48").finetune.rounds == 99


@pytest.mark.parametrize(
    ("override", "name"),
    [("+finetune.lrr=1", "finetune.lrr"), ("seed=one", "seed"), ("cohort.sites=0", "cohort.sites")],
)
def test_what_the_dataclasses_refuse_is_a_config_error(override: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(override)
    assert caught.value.name == name


def test_secure_aggregation_turns_off_what_must_see_single_updates() -> None:
    assert experiment().strategy.norm_limit > 0
    chosen = experiment("secure_aggregation=secagg", "secure_aggregation.fewest=4", "strategy=fedadam")
    assert (chosen.strategy.name, chosen.strategy.norm_limit) == ("fedadam", 0.0)
    assert isinstance(chosen.secure_aggregation, SecAgg)
    assert chosen.secure_aggregation.fewest == 4
    with pytest.raises(ConfigError, match=r"strategy\.name must work on the mean"):
        experiment("secure_aggregation=secagg", "strategy=krum")


def test_configs_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CONFIGS.is_absolute()
    assert experiment().name == "study"


@pytest.mark.parametrize("overrides", [privacy_benchmark.DEMO, secure_aggregation_benchmark.STUDY])
def test_studies_of_benchmarks_compose(overrides: tuple[str, ...]) -> None:
    assert experiment(*overrides).finetune.select == "last"
