"""Is a study refused when it is wrong, and the same everywhere when it is right?"""

from __future__ import annotations

from typing import Any

import pytest

from shared.config import MAE, STROKE_FAMILY, SimCLR, Study
from shared.errors import ConfigError
from shared.knobs import digest, from_json, load, to_json
from tests.factories import STUDY, changed, make_study

MAE_ = {"kind": "mae", "patch": 8}
FEATURE = {"name": "x", "code": "a", "unit": "1", "low": 5, "high": 9}


def test_a_study_survives_the_wire_with_its_digest() -> None:
    study = make_study({"objective": MAE_, "strategy.arguments": {"server_learning_rate": 0.5}})
    back = from_json(Study, to_json(study))
    assert back == study
    assert digest(back) == digest(study)
    assert hash(back) == hash(study)


def test_the_objective_is_chosen_by_its_kind() -> None:
    assert isinstance(make_study({"objective": {"kind": "simclr"}}).objective, SimCLR)
    assert isinstance(make_study({"objective": MAE_}).objective, MAE)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        # unknown
        ("finetune.epoch", 3, "finetune.epoch is not a setting. Did you mean finetune.epochs?"),
        ("model.image.nmae", "x", "model.image.nmae is not a setting. Did you mean model.image.name?"),
        ("objective.mask_ratio", 0.5, "objective.mask_ratio is not a setting"),
        ("optimiser", "x", "optimiser is not a setting"),
        # wrong type
        ("seed", True, "seed must be of type int, got True"),
        ("seed", "1", "seed must be of type int, got '1'"),
        ("seed", 1.0, "seed must be of type int, got 1.0"),
        ("finetune.lr", "fast", "finetune.lr must be of type float, got 'fast'"),
        ("model.image.shared", 1, "model.image.shared must be of type bool, got 1"),
        ("modalities", "oct", "modalities must be a list, got 'oct'"),
        ("images", [32, 32], "images must be a mapping of settings"),
        ("features.numeric", [{"name": "x"}], "features.numeric[0].code must be given"),
        ("strategy.arguments", [1], "strategy.arguments must be a mapping"),
        ("model.image.weights", {"oct": 3}, "model.image.weights.oct must be of type str, got 3"),
        ("finetune.lr", float("nan"), "finetune.lr must be"),
        ("finetune.weight_decay", float("inf"), "finetune.weight_decay must be"),
        # out of range
        ("seed", -1, "seed must be >= 0, got -1"),
        ("seed", 2**31, "seed must be < 2147483648"),
        ("task.horizon_days", 0, "task.horizon_days must be >= 1 days, got 0"),
        ("images.height", 4, "images.height must be >= 8 pixels, got 4"),
        ("images.per_case", 0, "images.per_case must be >= 1, got 0"),
        ("finetune.lr", 0.0, "finetune.lr must be > 0.0, got 0.0"),
        ("finetune.batch_size", 1, "finetune.batch_size must be >= 2, got 1"),
        ("pretrain.epochs", 0, "pretrain.epochs must be > 0.0, got 0.0"),
        ("pretrain.augmentation", {"flip": 1.5}, "pretrain.augmentation.flip must be <= 1.0, got 1.5"),
        ("objective", {"kind": "simclr", "temperature": 0}, "objective.temperature must be > 0.0, got 0.0"),
        ("objective", {"kind": "mae", "mask_ratio": 1.0}, "objective.mask_ratio must be < 1.0, got 1.0"),
        ("model.clinical.hidden", [32, 0], "model.clinical.hidden must be >= 1, got 0"),
        ("model.dropout", 1.0, "model.dropout must be < 1.0, got 1.0"),
        ("strategy.fraction", 0, "strategy.fraction must be > 0.0, got 0.0"),
        ("strategy.round_timeout_s", 0, "strategy.round_timeout_s must be > 0.0 s, got 0.0"),
        ("strategy.proximal_mu", -0.1, "strategy.proximal_mu must be >= 0.0, got -0.1"),
        ("features.numeric", [{"name": "x", "code": "a", "unit": "1", "lookback_days": 0}], "features.numeric[0].look"),
        # not among the choices
        ("objective", {"kind": "simlcr"}, "objective.kind must be one of simclr, mae, got 'simlcr'"),
        ("model.fusion", "lat", "model.fusion must be one of late, intermediate, got 'lat'. Did you mean late?"),
        ("finetune.optimizer", "adam", "finetune.optimizer must be one of adamw, sgd, got 'adam'. Did you mean adamw?"),
        ("finetune.precision", "float16", "finetune.precision must be one of float32, bfloat16, got 'float16'"),
        ("modalities", ["oct", "mri"], "modalities must be one of oct, ir, clinical, got 'mri'"),
        # contradictions
        ("modalities", [], "modalities must name each branch once, got ()"),
        ("modalities", ["oct", "oct"], "modalities must name each branch once"),
        ("modalities", ["clinical"], "pretrain.rounds must be 0 without images, got 1. Set pretrain.rounds=0"),
        ("features", {"age": False}, "features must not be empty with the clinical branch. Choose a feature list"),
        ("splits", {"train": 0.5, "tuning": 0.2, "held_out": 0.5}, "splits.train + tuning + held_out must be 1, got"),
        ("splits", {"train": 0.7, "tuning": 0.0}, "finetune.select best needs splits.tuning > 0. Set finetune.select="),
        ("objective", {"kind": "mae", "patch": 7}, "images.height must be a multiple of objective.patch (7), got 32"),
        ("model.image.weights", {"fundus": "w.pth"}, "model.image.weights must be keyed oct or ir, got 'fundus'"),
        ("features.numeric", [{"name": "x", "code": "a", "unit": "1", "low": 5, "high": 5}], "features.numeric[0].low"),
        ("features.numeric", [{**FEATURE, "usual_low": 4}], "features.numeric[0].usual_low"),
        ("features.numeric", [{**FEATURE, "usual_high": 10}], "features.numeric[0].usual_low"),
        ("features.numeric", [{**FEATURE, "usual_low": 7, "usual_high": 6}], "features.numeric[0].usual_low"),
        ("features.codes", [{"name": "systolic", "codes": ["ICD10//I10"]}], "features.names must be unique, got 'syst"),
        ("features.codes", [{"name": "age_years", "codes": ["ICD10//I10"]}], "features.names must be unique, got 'age"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(name: str, value: object, message: str) -> None:
    data = changed(STUDY, {name: value})
    with pytest.raises(ConfigError) as caught:
        load(Study, data)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune.rounds": 0, "pretrain.rounds": 0}, "finetune.rounds must be > 0 when pretrain.rounds is 0, got 0"),
        (
            {"objective": {"kind": "simclr", "between_modalities": True}, "modalities": ["oct", "clinical"]},
            "objective.between_modalities needs oct and ir, got True. Set it to false",
        ),
        ({"objective": MAE_, "images.width": 30}, "images.width must be a multiple of objective.patch (8), got 30"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_study(changes)
    assert str(caught.value).startswith(message)


def test_a_contradiction_in_a_stage_that_does_not_run_is_none() -> None:
    make_study({"pretrain.rounds": 0, "objective": MAE_, "images.width": 30})
    make_study({"finetune.rounds": 0, "splits": {"train": 0.7, "tuning": 0.0, "held_out": 0.3}})


STROKE_CODES = [
    "ICD10//I63",
    "ICD10//I63.4",
    "ICD10//I69.3",
    "ICD10//I6",
    "ICD10//G45",
    "ICD10//G45.9",
    "ICD10//G46.0",
    "ICD10//Z86.73",
    "SNOMED//230690007",
    *("ICD10//I", "ICD10//Z86", "ICD10//Z86.7", "ICD10//", ""),  # refined by a stroke code
]


@pytest.mark.parametrize("code", STROKE_CODES)
def test_a_stroke_code_is_refused_as_an_input(code: str) -> None:
    with pytest.raises(ConfigError, match="must not name a stroke code"):
        make_study({"features.codes": [{"name": "x", "codes": ["ICD10//I10", code]}]})
    with pytest.raises(ConfigError, match="must not name a stroke code"):
        make_study({"features.numeric": [{"name": "x", "code": code, "unit": "1"}]})


def test_when_something_began_is_refused_as_an_input() -> None:
    """It is dated before anybody knew of it, so it would look ahead."""
    with pytest.raises(ConfigError, match="must not name an onset"):
        make_study({"features.codes": [{"name": "x", "codes": ["ONSET//ICD10//I10"]}]})


@pytest.mark.parametrize("code", ["ICD10//I10", "ICD10//I48", "ICD10//G40", "ICD10//I5", "ICD10//Z86.74", "LOINC//I63"])
def test_a_code_that_is_no_stroke_code_is_accepted(code: str) -> None:
    assert make_study({"features.codes": [{"name": "x", "codes": [code]}]}).features.codes[0].codes == (code,)


def test_the_stroke_family_names_every_code_of_the_outcome() -> None:
    """I60, I61, I63 and I64 are the outcome; I69, G45, G46 and Z86.73 follow from it."""
    for code in ("I60", "I61", "I62", "I63", "I64", "I69", "G45", "G46", "Z86.73"):
        assert f"ICD10//{code}".startswith(STROKE_FAMILY)


def test_image_modalities_keep_their_order_whatever_the_study_says() -> None:
    assert make_study({"modalities": ["ir", "clinical", "oct"]}).image_modalities == ("oct", "ir")
    assert make_study({"modalities": ["clinical", "ir"]}).image_modalities == ("ir",)
