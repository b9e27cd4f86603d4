"""Augmentation changes what it should, repeats for a seed and leaves pixels alone when it is switched off."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pneumonia.config.schema import AugmentConfig
from pneumonia.training.augment import augment

OFF = AugmentConfig(
    flip_probability=0, rotate_degrees=0, scale=0, translate=0, brightness=0, contrast=0, gamma=0, noise=0
)


def _images(count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 14, 14, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(224, 224), mode="bilinear")
    return (smooth[:, 0] * 255).to(torch.uint8)


def _generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_switched_off_it_returns_the_pixels_it_got() -> None:
    assert torch.equal(augment(_images(), OFF, _generator()), _images())


def test_a_certain_flip_mirrors_left_and_right() -> None:
    flipped = augment(_images(), dataclasses.replace(OFF, flip_probability=1.0), _generator())
    assert (flipped.int() - _images().flip(-1).int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["rotate_degrees", "scale", "translate", "brightness", "contrast", "gamma", "noise"])
def test_every_width_changes_images_and_each_image_differently(name: str) -> None:
    image = _images(1).repeat(3, 1, 1)
    width = 20.0 if name == "rotate_degrees" else 0.3
    changed = augment(image, dataclasses.replace(OFF, **{name: width}), _generator())
    assert changed.dtype == torch.uint8
    assert changed.shape == image.shape
    assert not torch.equal(changed[0], image[0])
    assert not torch.equal(changed[0], changed[1])


def test_a_shift_moves_by_at_most_its_share_of_the_side() -> None:
    image = torch.zeros(64, 224, 224, dtype=torch.uint8)
    image[:, 110:114, 110:114] = 255
    moved = augment(image, dataclasses.replace(OFF, translate=0.1), _generator())
    rows = torch.stack([torch.nonzero(one)[:, 0].float().mean() for one in moved])
    assert (rows - 111.5).abs().max() <= 0.1 * 224 + 1
    assert (rows - 111.5).abs().max() > 10


def test_erasing_covers_a_rectangle_of_one_value() -> None:
    erased = augment(_images(), dataclasses.replace(OFF, erase_probability=1.0), _generator())
    changed = erased != _images()
    share = changed.float().mean(dim=(1, 2))
    assert (share > 0.005).all()
    assert (share < 0.13).all()


def test_one_seed_gives_one_result() -> None:
    first = augment(_images(), AugmentConfig(), _generator(7))
    assert torch.equal(first, augment(_images(), AugmentConfig(), _generator(7)))
    assert not torch.equal(first, augment(_images(), AugmentConfig(), _generator(8)))


def test_crops_show_a_part_of_at_least_the_least_area_anywhere() -> None:
    across, down = torch.meshgrid(torch.arange(224), torch.arange(224), indexing="xy")
    config = dataclasses.replace(OFF, crop_area=0.5, crop_ratio=1.25)
    wide = augment(across.to(torch.uint8).repeat(256, 1, 1), config, _generator()).float()
    tall = augment(down.to(torch.uint8).repeat(256, 1, 1), config, _generator()).float()
    # The grey of a ramp is the place, so that its ends are those of the crop.
    left, right, top, bottom = wide[:, 0, 0], wide[:, 0, -1], tall[:, 0, 0], tall[:, -1, 0]
    area, ratio = (right - left) * (bottom - top) / 223**2, (right - left) / (bottom - top)
    assert 0.48 < area.min() < 0.55
    assert area.max() > 0.95
    assert 1 / 1.28 < ratio.min() < 0.85
    assert 1.18 < ratio.max() < 1.28
    assert (left.min(), right.max(), top.min(), bottom.max()) == (0, 223, 0, 223)
    assert left.max() > 50


def test_borders_surround_whole_images_in_black_white_and_grey() -> None:
    image = torch.full((256, 224, 224), 100, dtype=torch.uint8)
    image[:, 12:-12, 12:-12] = 150
    config = dataclasses.replace(OFF, border_probability=1.0, border_width=0.2, crop_area=0.5)
    bordered = augment(image, config, _generator())
    # Nothing is cut off and the borders take at most a fifth of a side, so the image's own frame is inside of that.
    edges = torch.stack([bordered[:, :46, 112], bordered[:, -46:, 112], bordered[:, 112, :46], bordered[:, 112, -46:]])
    assert (edges == 100).any(dim=2).all()
    assert (bordered[:, 60:-60, 60:-60] == 150).all()
    # A quarter of the sides have none, letterboxes and single edges among them.
    outermost = torch.stack([bordered[:, 0, 112], bordered[:, -1, 112], bordered[:, 112, 0], bordered[:, 112, -1]])
    assert 0.18 < (outermost == 100).float().mean() < 0.33
    greys = outermost.amax(dim=0).masked_fill(outermost.amax(dim=0) == 100, 0)
    assert 0.2 < (greys == 255).float().mean() < 0.5
    assert 0.2 < (greys == 0).float().mean() < 0.6
    assert len(greys[(greys > 0) & (greys < 255)].unique()) > 10


def test_borders_come_instead_of_crops_for_their_share_of_images() -> None:
    image = torch.full((400, 224, 224), 100, dtype=torch.uint8)
    config = dataclasses.replace(OFF, border_probability=0.3, crop_area=0.5)
    changed = (augment(image, config, _generator()) != 100).flatten(1).any(dim=1)
    assert 0.2 < changed.float().mean() < 0.4
