"""Does a prediction depend on what is there, and on nothing that is not?"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from shared.config import FINETUNE, Study
from shared.inputs import Cases
from shared.models.multimodal import MultimodalModel, build_encoders
from shared.objectives.registry import build_objective
from shared.statistics import Statistics
from tests.factories import make_cases, make_study

FUSIONS = [{"model.fusion": "late"}, {"model.fusion": "intermediate"}, {"model.fusion_hidden": 5}]


def build(study: Study) -> MultimodalModel:
    """A model all of whose parameters matter: none of them zero."""
    model = build_objective(study, FINETUNE, Statistics.neutral(study)).get_submodule("model").eval()
    assert isinstance(model, MultimodalModel)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def without(cases: Cases, case: int, name: str) -> Cases:
    """The cases, one of them without one modality."""
    if name == "clinical":
        assert cases.recorded is not None
        recorded = cases.recorded.clone()
        recorded[case] = False
        return replace(cases, recorded=recorded)
    shown = {key: value.clone() for key, value in cases.shown.items()}
    shown[name][case] = False
    return replace(cases, shown=shown)


def spoilt(cases: Cases, case: int, name: str, value: float) -> Cases:
    """The cases, one of them with other inputs of one modality."""
    if name == "clinical":
        assert cases.clinical is not None
        clinical = cases.clinical.clone()
        clinical[case] = value
        return replace(cases, clinical=clinical)
    images = {key: value_.float() for key, value_ in cases.images.items()}
    images[name][case] = value
    return replace(cases, images=images)


@pytest.mark.parametrize("changes", FUSIONS)
def test_inputs_of_an_absent_modality_change_nothing(changes: dict[str, object]) -> None:
    model = build(make_study(changes))
    cases = make_cases(4)
    for names in itertools.chain.from_iterable(itertools.combinations(("oct", "ir", "clinical"), n) for n in (1, 2, 3)):
        absent = cases
        for name in names:
            absent = without(absent, 1, name)
        expected = model(absent)
        assert torch.isfinite(expected).all()
        for name, value in itertools.product(names, (0.0, 123.0, float("nan"), float("inf"))):
            found = model(spoilt(absent, 1, name, value))
            assert torch.equal(found, expected), (names, name, value)


@pytest.mark.parametrize("changes", FUSIONS)
@pytest.mark.parametrize("name", ["oct", "ir", "clinical"])
def test_inputs_of_a_present_modality_matter(changes: dict[str, object], name: str) -> None:
    model, cases = build(make_study(changes)), make_cases(4)
    other = make_cases(4, seed=1)
    mixed = (
        replace(cases, clinical=other.clinical)
        if name == "clinical"
        else replace(cases, images={**cases.images, name: other.images[name]})
    )
    assert (model(mixed) != model(cases)).all()
    assert (model(without(cases, 2, name)) != model(cases)).tolist() == [False, False, True, False]


@pytest.mark.parametrize("changes", FUSIONS)
def test_an_absent_record_sends_no_nan_into_the_gradients(changes: dict[str, object]) -> None:
    model = build(make_study(changes))
    cases = without(make_cases(4), 1, "clinical")
    assert cases.clinical is not None
    cases.clinical[1, :4] = float("nan")  # values and ages; codes are 0 or 1
    model(cases).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("changes", FUSIONS)
def test_a_case_does_not_depend_on_the_others_of_its_batch(changes: dict[str, object]) -> None:
    model, cases = build(make_study(changes)), without(without(make_cases(5), 0, "oct"), 3, "ir")

    def one(case: int) -> Cases:
        at = slice(case, case + 1)
        assert cases.clinical is not None
        assert cases.recorded is not None
        images, shown = ({key: value[at] for key, value in part.items()} for part in (cases.images, cases.shown))
        return Cases(images, shown, cases.clinical[at], cases.recorded[at], cases.labels[at])

    apart = torch.cat([model(one(case)) for case in range(5)])
    torch.testing.assert_close(apart, model(cases), rtol=1e-4, atol=1e-5)


def test_the_order_of_the_scans_of_a_case_does_not_matter() -> None:
    model, cases = build(make_study()), make_cases(3, scans=3)
    flipped = replace(cases, images={name: images.flip(1) for name, images in cases.images.items()})
    torch.testing.assert_close(model(flipped), model(cases), rtol=1e-4, atol=1e-5)


def test_a_scan_that_is_not_shown_does_not_matter() -> None:
    model, cases = build(make_study()), make_cases(3, scans=2)
    hidden = {name: torch.tensor([[True, False]] * 3) for name in ("oct", "ir")}
    alone = replace(cases, shown=hidden)
    cut = Cases(
        {name: images[:, :1] for name, images in cases.images.items()},
        {name: shown[:, :1] for name, shown in hidden.items()},
        cases.clinical,
        cases.recorded,
        cases.labels,
    )
    torch.testing.assert_close(model(alone), model(cut), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", [("oct",), ("ir",), ("clinical",), ("oct", "clinical"), ("oct", "ir")])
def test_a_study_of_some_modalities_needs_those_only(names: tuple[str, ...]) -> None:
    study = make_study({"modalities": list(names), "pretrain.rounds": 0})
    model, cases = build(study), make_cases(3)
    bare = Cases(
        {name: cases.images[name] for name in names if name != "clinical"},
        {name: cases.shown[name] for name in names if name != "clinical"},
        cases.clinical if "clinical" in names else None,
        cases.recorded if "clinical" in names else None,
        cases.labels,
    )
    assert model(bare).shape == (3,)
    assert set(model.heads) == set(names)


def test_a_site_without_a_modality_works_and_trains_what_it_has() -> None:
    model = build(make_study()).train()
    cases = make_cases(4)
    nowhere = torch.zeros(4, 2, dtype=torch.bool)
    logits = model(replace(cases, shown={**cases.shown, "ir": nowhere}))
    logits.sum().backward()
    assert all(p.grad is None for p in model.encoders["ir"].parameters())
    assert all(p.grad is not None for p in model.encoders["oct"].parameters())
    assert model.absent["ir"].grad is not None
    assert model.absent["ir"].grad.abs().sum() > 0


def test_a_case_of_which_nothing_is_known_has_the_same_risk_as_any_other() -> None:
    model, cases = build(make_study()), make_cases(4)
    for case, name in itertools.product(range(4), ("oct", "ir", "clinical")):
        cases = without(cases, case, name)
    assert len(set(model(cases).tolist())) == 1


def test_late_fusion_joins_narrow_outputs_and_intermediate_the_embeddings() -> None:
    late, intermediate = (MultimodalModel(s, Statistics.neutral(s)) for s in map(make_study, FUSIONS[:2]))
    assert late.fuse.in_features == 3 * 4
    assert intermediate.fuse.in_features == 8 + 8 + 4


def test_a_shared_encoder_is_one_and_own_encoders_are_two() -> None:
    shared, own = build_encoders(make_study({"model.image.shared": True})), build_encoders(make_study())
    assert shared["oct"] is shared["ir"]
    assert len(list(own.parameters())) == 2 * len(list(shared.parameters()))


def test_device_gain_and_offset_do_not_matter() -> None:
    model, cases = build(make_study()), make_cases(3)
    dimmed = replace(cases, images={name: images.float() * 0.5 + 20 for name, images in cases.images.items()})
    torch.testing.assert_close(model(dimmed), model(cases), rtol=1e-2, atol=1e-2)


def test_units_do_not_matter_once_statistics_are_known() -> None:
    """The same values in other units, with the statistics of those units."""
    study, cases = make_study(), make_cases(5)
    models = [
        build_objective(study, FINETUNE, statistics).get_submodule("model").eval()
        for statistics in (Statistics((0.0, 0.0), (1.0, 1.0)), Statistics((5.0, -3.0), (2.0, 10.0)))
    ]
    assert cases.clinical is not None
    other = cases.clinical.clone()
    other[:, :2] = other[:, :2] * torch.tensor([2.0, 10.0]) + torch.tensor([5.0, -3.0])
    torch.testing.assert_close(models[1](replace(cases, clinical=other)), models[0](cases), rtol=1e-4, atol=1e-5)


def test_the_missing_and_the_mean_are_told_apart() -> None:
    model, cases = build(make_study()), make_cases(2)
    assert cases.clinical is not None
    mean, missing = cases.clinical.clone(), cases.clinical.clone()
    mean[:, 0], missing[:, 0] = 0.0, float("nan")
    assert (model(replace(cases, clinical=mean)) != model(replace(cases, clinical=missing))).all()


def test_modality_dropout_masks_in_training_only() -> None:
    model, cases = build(make_study({"model.modality_dropout": 0.5, "model.dropout": 0.0})), make_cases(64)
    model.record.eval()
    assert torch.equal(model(cases), model(cases))
    model.training = True
    present = torch.cat([model.embed(name, cases)[1] for name in ("oct", "ir", "clinical")])
    assert 0.35 < present.float().mean() < 0.65


def test_a_sites_intercept_shifts_every_logit_and_does_not_travel() -> None:
    model, cases = build(make_study()), make_cases(3)
    before, names = model(cases), set(model.state_dict())
    model.intercept = 0.7
    torch.testing.assert_close(model(cases), before + 0.7)
    assert set(model.state_dict()) == names
