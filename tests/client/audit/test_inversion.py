"""Does the search for inputs that fit a gradient find them where it is known that they can be found?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import Generator, Tensor, nn

from client.audit.demonstration import demonstrate
from client.audit.inversion import gradient, input_of_linear, invert, like_original, one_minus_cosine, psnr, ssim
from client.audit.patients import Patients
from client.store import open_store
from shared.config import FINETUNE
from shared.objectives.registry import build_objective
from shared.objectives.supervised import SupervisedObjective
from shared.site_folder import SiteFolder
from shared.statistics import Statistics
from tests.factories import make_study


def random_image(seed: int, size: int = 16) -> Tensor:
    return torch.rand(size, size, generator=Generator().manual_seed(seed)) * 255


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
def test_a_linear_layers_gradient_holds_its_input_exactly(outputs: int, inputs: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer, x = nn.Linear(inputs, outputs), torch.randn(inputs)
    slopes = gradient(layer(x).sigmoid().square().sum(), [layer.weight, layer.bias])
    torch.testing.assert_close(input_of_linear(*slopes), x, rtol=1e-4, atol=1e-5)


def test_the_search_recovers_the_input_of_a_linear_model() -> None:
    """The known case: the cosine is 1 at the true input alone, since the gradient of the bias fixes the scale."""
    torch.manual_seed(0)
    layer, truth = nn.Linear(36, 3), torch.randn(1, 6, 6)

    def gradient_of(images: Tensor) -> list[Tensor]:
        loss = nn.functional.cross_entropy(layer(images.flatten(1)), torch.tensor([1]))
        return gradient(loss, [layer.weight, layer.bias], again=True)

    sent = [part.detach() for part in gradient_of(truth)]
    found = invert(gradient_of, sent, truth.shape, 600, 0.0, Generator().manual_seed(1))
    assert float(one_minus_cosine(gradient_of(found), sent).detach()) < 1e-3
    assert float((found - truth).abs().max()) < 0.05


@given(st.integers(0, 50), st.integers(51, 99))
def test_likeness_is_that_of_an_independent_computation(one: int, other: int) -> None:
    a, b = random_image(one), random_image(other)
    expected = structural_similarity(a.numpy(), b.numpy(), data_range=255.0, win_size=7)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-3)
    assert psnr(a, b) == pytest.approx(10 * np.log10(255**2 / np.square(a.numpy() - b.numpy()).mean()), abs=1e-3)
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-6)


@given(st.integers(0, 99), st.floats(0.1, 3.0), st.floats(-50, 50))
def test_gain_and_offset_do_not_count(seed: int, gain: float, offset: float) -> None:
    image = random_image(seed)
    torch.testing.assert_close(like_original(gain * image + offset, image), image, rtol=0.0, atol=0.05)
    assert psnr(like_original(-image, image), image) > 99.0  # nor does the sign, which the model's own does not tell


@pytest.mark.parametrize("encoder_lr", [1.0, 0.0])
def test_a_demonstration_reads_the_record_and_says_what_was_frozen(site: SiteFolder, encoder_lr: float) -> None:
    """One patient's record comes out exactly; scans only where their encoders train."""
    study = make_study({"pretrain.rounds": 1, "finetune.encoder_lr": encoder_lr})
    objective = build_objective(study, FINETUNE, Statistics((70.0, 106.0), (5.0, 4.0), 0.5))
    assert isinstance(objective, SupervisedObjective)
    patients = Patients.of(open_store(site.path, study))
    rows = patients.rows[:2]
    shown = demonstrate(objective, study, patients, [rows[:1], rows[1:]], 0, steps=3)
    assert (shown.batch, shown.frozen, len(shown.scans)) == (1, encoder_lr == 0.0, 4)
    assert shown.inputs_read == shown.inputs == 2 * 8
    for scan in shown.scans:
        assert scan.original.shape == scan.found.shape == (32, 32)
        assert scan.unrelated.psnr > 0
