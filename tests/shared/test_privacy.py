"""Does one frozen plan hold what a study costs, within its target, by another accountant too; and what is refused?"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from torch import nn

from server.start import check_study
from shared.accounting import Release
from shared.config import PRETRAIN, Study
from shared.errors import ConfigError
from shared.knobs import from_json, to_json
from shared.objectives.registry import build_objective
from shared.privacy import PrivacyPlan, calibrate
from shared.privacy_rules import check_module
from shared.statistics import Statistics
from tests.factories import make_study

PRIVATE: dict[str, Any] = {
    "privacy": {"kind": "patient_dpsgd", "target_epsilon": 4.0, "sampling_rate": 0.25},
    "objective": {"kind": "mae", "patch": 8, "decoder_width": 8},
    "finetune": {"rounds": 3, "epochs": 2.0, "select": "last"},
    "pretrain": {"rounds": 2, "epochs": 0.5},
}


def study_of(changes: dict[str, Any] | None = None) -> Study:
    return make_study({**PRIVATE, **(changes or {})})


def independent(releases: list[Release], delta: float) -> float:
    """By the privacy loss distributions of dp-accounting, which knows both directions of adjacency."""
    accounting = pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    pld = pytest.importorskip("dp_accounting.pld", reason="dp-accounting is not installed")
    accountant = pld.PLDAccountant()
    for release in releases:
        event = accounting.GaussianDpEvent(release.noise_multiplier)
        sampled = accounting.PoissonSampledDpEvent(release.sampling_rate, event)
        accountant.compose(sampled, release.steps)
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(
    ("target", "changes"), [(4.0, {}), (1.0, {"privacy.sampling_rate": 0.05}), (8.0, {"privacy.exempt": ["evaluate"]})]
)
def test_all_that_a_study_releases_stays_within_the_target_and_uses_it(target: float, changes: dict[str, Any]) -> None:
    plan = PrivacyPlan.of(study_of({"privacy.target_epsilon": target, **changes}))
    found = independent(plan.releases(), plan.delta)
    assert found <= plan.epsilon <= target
    assert found >= 0.96 * target


def test_each_message_costs_its_part_and_all_together_are_the_plan() -> None:
    study = study_of()
    plan = PrivacyPlan.of(study)
    steps = {"survey": 1, "pretrain": 2, "finetune": 8, "evaluate": 1}  # epochs / sampling rate
    rounds = {"survey": 1, "pretrain": 2, "finetune": 3, "evaluate": 1}
    total = 0
    for stage, count in steps.items():
        release = plan.release_of(stage)
        assert release is not None
        assert release.steps == count
        assert release.sampling_rate == (0.25 if stage in ("pretrain", "finetune") else 1.0)
        total += count * rounds[stage]
    assert sum(release.steps for release in plan.releases()) == total
    pretrain, finetune = plan.release_of("pretrain"), plan.release_of("finetune")
    assert pretrain is not None
    assert finetune is not None
    assert pretrain.noise_multiplier == finetune.noise_multiplier == plan.noise_multiplier


def test_nothing_of_a_plan_can_be_changed_alone() -> None:
    plan = PrivacyPlan.of(study_of())
    for field in dataclasses.fields(plan):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(plan, field.name, getattr(plan, field.name))
    assert PrivacyPlan.of(from_json(Study, to_json(study_of()))) is plan


def test_more_steps_need_more_noise() -> None:
    few, many = (PrivacyPlan.of(study_of({"finetune.rounds": n})).noise_multiplier for n in (2, 12))
    assert few < many


def test_without_privacy_nothing_is_counted_and_nothing_promised() -> None:
    plan = PrivacyPlan.of(make_study())
    assert math.isinf(plan.epsilon)
    assert plan.releases() == []
    assert plan.release_of("finetune") is None


def test_a_target_is_met_from_the_safe_side() -> None:
    noise = calibrate(lambda sigma: [Release(sigma, 1.0)], 2.0, 1e-5)
    exact = independent([Release(noise, 1.0)], 1e-5)
    assert 0.98 * 2.0 < exact <= 2.0


def test_an_exempt_stage_is_not_paid_for_and_the_plan_names_it() -> None:
    plan = PrivacyPlan.of(study_of({"privacy.exempt": ["pretrain"], "objective": {"kind": "simclr"}}))
    assert plan.release_of("pretrain") is None
    assert plan.exempt == ("pretrain",)
    assert math.isfinite(plan.epsilon)
    assert PrivacyPlan.of(study_of()).exempt == ()


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"objective": {"kind": "simclr"}},
        r"objective must not compare patients with each other.*got 'simclr'\. Set objective=mae, or privacy\.exempt",
    ),
    ({"model.image.group_norm": False}, r"model\.image\.group_norm must be true .*got False\. Set it to true"),
    ({"finetune.select": "best"}, r"finetune\.select must be last .*got 'best'\. Set finetune\.select=last"),
    (
        {"features.numeric": [{"name": "systolic", "code": "LOINC//8480-6", "unit": "mm[Hg]"}]},
        r"features\.systolic must have a plausible range .*Declare low and high",
    ),
    ({"privacy.survey_share": 0.6, "privacy.evaluation_share": 0.6}, r"survey_share \+ evaluation_share must be < 1"),
    ({"privacy.exempt": ["pretrain"], "finetune.rounds": 0}, r"privacy\.exempt must leave a stage private"),
    ({"privacy.exempt": ["finetune"]}, r"privacy\.exempt must be one of pretrain, evaluate, got 'finetune'"),
    ({"privacy.kind": "dpsgd"}, r"privacy\.kind must be one of none, patient_dpsgd, got 'dpsgd'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_private_is_refused_when_the_study_is_composed(changes: dict[str, Any], message: str) -> None:
    study_of()
    with pytest.raises(ConfigError, match=message):
        study_of(changes)


def test_a_model_that_keeps_statistics_of_batches_is_refused_though_no_knob_says_so() -> None:
    kept = nn.InstanceNorm2d(3, track_running_stats=True)
    for part in (nn.BatchNorm2d(3), nn.BatchNorm1d(3, track_running_stats=False), kept):
        with pytest.raises(ConfigError, match=r"model: 1 must keep no statistics of a batch with privacy, got"):
            check_module(nn.Sequential(nn.Linear(2, 2), part), "finetune")
    check_module(nn.Sequential(nn.GroupNorm(1, 3), nn.InstanceNorm2d(3)), "finetune")
    check_study(study_of())


def test_an_objective_that_mixes_patients_is_refused_though_no_knob_says_so() -> None:
    study = make_study()
    with pytest.raises(ConfigError, match="objective of pretrain must not mix patients"):
        check_module(build_objective(study, PRETRAIN, Statistics.neutral(study)), PRETRAIN)


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.target_epsilon must be reachable, got 0\.5\. Lower the"):
        calibrate(lambda noise: [Release(0.5, 1.0), Release(noise, 0.1)], 0.5, 1e-5)
