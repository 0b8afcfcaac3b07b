"""Do random changes follow their draws, and only their draws?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from shared.config import Augmentation
from shared.models.images import standardise
from shared.objectives.augmentation import augment

NONE = Augmentation()
ALL = Augmentation(crop_area=0.3, flip=0.5, rotate_degrees=10, gamma=0.5, noise=0.3, blur=0.5)
KINDS = [{"crop_area": 0.5}, {"flip": 1.0}, {"rotate_degrees": 30.0}, {"gamma": 1.0}, {"noise": 1.0}, {"blur": 1.0}]


def images_of(count: int = 3, height: int = 16, width: int = 24) -> Tensor:
    return torch.randint(0, 256, (count, 1, height, width), generator=Generator().manual_seed(1), dtype=torch.uint8)


def run(images: Tensor, config: Augmentation, seed: int = 0) -> Tensor:
    return augment(images, config, Generator().manual_seed(seed))


def test_no_augmentation_is_standardisation() -> None:
    assert torch.equal(run(images_of(), NONE), standardise(images_of().float()))


def test_no_augmentation_draws_nothing() -> None:
    generator = Generator().manual_seed(3)
    augment(images_of(), NONE, generator)
    assert torch.equal(generator.get_state(), Generator().manual_seed(3).get_state())


@pytest.mark.parametrize("change", [*KINDS, vars(ALL)])
def test_every_kind_changes_every_image_and_keeps_its_shape(change: dict[str, float]) -> None:
    images = images_of()
    found = run(images, Augmentation(**change))
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert ((found - run(images, NONE)).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize("change", [*KINDS, vars(ALL)])
def test_the_same_seed_gives_the_same_images_and_another_seed_others(change: dict[str, float]) -> None:
    config = Augmentation(**change)
    assert torch.equal(run(images_of(), config), run(images_of(), config))
    if change not in ({"flip": 1.0}, {"blur": 1.0}):  # certain, so without chance
        assert not torch.equal(run(images_of(), config), run(images_of(), config, seed=1))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    run(images_of(), ALL)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_input_is_not_changed() -> None:
    images = images_of().float()
    before = images.clone()
    run(images, ALL)
    assert torch.equal(images, before)


def test_each_image_has_its_own_draw() -> None:
    same = images_of(1).expand(4, -1, -1, -1)
    found = run(same, ALL)
    assert all(not torch.allclose(found[0], found[i], atol=1e-2) for i in (1, 2, 3))


def test_the_draw_of_an_image_does_not_depend_on_the_pixels_of_others() -> None:
    images = images_of()
    changed = images.clone()
    changed[1:] = 255 - changed[1:]
    assert torch.equal(run(images, ALL)[0], run(changed, ALL)[0])


def test_a_certain_flip_is_the_mirror_image() -> None:
    found = run(images_of(), Augmentation(flip=1.0))
    torch.testing.assert_close(found, run(images_of(), NONE).flip(3), rtol=1e-3, atol=1e-3)


def test_flips_come_as_often_as_asked() -> None:
    images = images_of(1).expand(400, -1, -1, -1)
    mirrored = run(images, NONE).flip(3)
    found = (run(images, Augmentation(flip=0.3)) - mirrored).abs().amax(dim=(1, 2, 3)) < 1e-2
    assert 0.22 < found.float().mean() < 0.38


def disc(height: int, width: int) -> Tensor:
    y = torch.arange(height).view(-1, 1) - (height - 1) / 2
    x = torch.arange(width).view(1, -1) - (width - 1) / 2
    return ((x**2 + y**2).sqrt() < 10).float()[None, None] * 200


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 64), (64, 32)])
def test_a_rotated_disc_is_the_disc_whatever_the_shape_of_the_image(height: int, width: int) -> None:
    """Rotation in pixels, not in the unit square: a disc must not become an ellipse."""
    images = disc(height, width).expand(8, -1, -1, -1)
    found, plain = run(images, Augmentation(rotate_degrees=180.0)), run(images, NONE)
    assert ((found > found.mean(dim=(1, 2, 3), keepdim=True)) != (plain > 0)).float().mean() < 0.02


def test_rotation_stays_within_its_bound() -> None:
    """A bar along the rows tilts by 10 degrees at most, and by more than 5 sometimes."""
    bar = torch.zeros(1, 1, 65, 65)
    bar[:, :, 31:34] = 200
    found = run(bar.expand(60, -1, -1, -1), Augmentation(rotate_degrees=10.0))[:, 0]
    rows = torch.arange(65.0).view(1, -1, 1)
    weights = (found - found.amin(dim=(1, 2), keepdim=True)).clamp(min=0)
    centre = (weights * rows).sum(1) / weights.sum(1)
    tilt = torch.rad2deg(torch.atan((centre[:, 52] - centre[:, 12]) / 40)).abs()
    assert tilt.max() < 10.5
    assert tilt.max() > 5


def test_a_crop_enlarges_by_its_area_at_most() -> None:
    found = run(disc(64, 64).expand(100, -1, -1, -1), Augmentation(crop_area=0.5))
    area = (found > found.mean(dim=(1, 2, 3), keepdim=True)).float().sum(dim=(1, 2, 3))
    plain = (disc(64, 64) > 0).sum()
    assert area.max() <= plain * 2.2  # half of the area fills the whole image
    assert area.min() >= plain * 0.95
    assert area.max() > plain * 1.6


def test_gamma_keeps_the_order_of_pixels() -> None:
    images = torch.arange(0, 256, 1.0).view(1, 1, 16, 16)
    found = run(images, Augmentation(gamma=1.0))
    assert (found.flatten().diff() >= 0).all()


def test_blur_smooths() -> None:
    def roughness(images: Tensor) -> Tensor:
        return images.diff(dim=3).abs().mean(dim=(1, 2, 3))

    assert (roughness(run(images_of(), Augmentation(blur=1.0))) < 0.8 * roughness(run(images_of(), NONE))).all()


def test_gain_of_a_device_does_not_change_what_geometry_makes() -> None:
    config = replace(ALL, gamma=0.0)
    bright, dim = run(images_of().float(), config), run(images_of().float() * 0.25 + 40, config)
    torch.testing.assert_close(bright, dim, rtol=1e-2, atol=1e-2)
