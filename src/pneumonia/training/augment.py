"""Random changes to a batch of training images, in plain PyTorch."""

from __future__ import annotations

import torch
from torch.nn import functional

from pneumonia.config.schema import AugmentConfig

_WHOLE = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
"""A whole image as a box: half width, half height, centre x and y."""


def _uniform(count: int, half_widths: tuple[float, ...], generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """For each of `half_widths` a tensor of `count` values up to that far from 0; one draw costs as much as all."""
    draws = torch.rand(len(half_widths), count, generator=generator) * 2 - 1
    return (draws * torch.tensor(half_widths)[:, None]).unbind()


def _affine(count: int, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Random inverse affine maps in grid_sample's -1..1 coordinates, (count, 2, 3)."""
    # A shift of a share of a side is twice that share in coordinates from -1 to 1.
    half_widths = config.rotate_degrees, config.scale, config.scale / 2, 2 * config.translate, 2 * config.translate
    degrees, zoom, aspect, across, down = _uniform(count, half_widths, generator)
    flip = torch.where(torch.rand(count, generator=generator) < config.flip_probability, -1.0, 1.0)
    angle = torch.deg2rad(degrees)
    cos, sin = torch.cos(angle), torch.sin(angle)
    wide, tall = (1 + zoom) * (1 + aspect), (1 + zoom) / (1 + aspect)
    rows = flip * cos * wide, -sin * wide, across, flip * sin * tall, cos * tall, down
    return torch.stack(rows, dim=1).view(count, 2, 3)


def _crops(count: int, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Random boxes of images, in coordinates from -1 to 1: half width, half height, centre x and y, (4, count).

    Random resized crops (Szegedy et al. 2014, arXiv:1409.4842): where the lungs lie in an image, and how much of it
    they fill, tells how it was made and not what it shows.
    """
    if config.crop_area == 1:
        return _WHOLE.repeat(1, count)
    area, ratio, across, down = torch.rand(4, count, generator=generator)
    area = config.crop_area + (1 - config.crop_area) * area
    ratio = config.crop_ratio ** (2 * ratio - 1)
    wide, tall = (area * ratio).sqrt().clamp_(max=1), (area / ratio).sqrt().clamp_(max=1)
    return torch.stack([wide, tall, (1 - wide) * (2 * across - 1), (1 - tall) * (2 * down - 1)])


def _borders(count: int, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Random boxes that borders leave of images, as `_crops` gives them, and the grey of each border, (5, count).

    A quarter of the sides get none, so that letterboxes and single edges are among them.
    """
    draws = torch.rand(6, count, generator=generator)
    left, right, top, bottom = ((draws[:4] * 4 - 1) / 3).clamp_(min=0) * config.border_width
    grey = torch.where(draws[4] < 1 / 3, 0.0, torch.where(draws[4] < 2 / 3, 1.0, draws[5]))
    return torch.stack([1 - left - right, 1 - top - bottom, left - right, top - bottom, grey])


def _framed(maps: torch.Tensor, crops: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Inverse maps (B, 2, 3) that show of each image its crop, and show that in its box; both (4, B)."""
    sides, centres = boxes[:2], boxes[2:]
    across = maps[:, :, 0] / sides[0, :, None]
    down = maps[:, :, 1] / sides[1, :, None]
    shift = maps[:, :, 2] - across * centres[0, :, None] - down * centres[1, :, None]  # (B, 2)
    return torch.stack([across, down, shift], dim=2) * crops[:2].T[:, :, None] + functional.pad(
        crops[2:].T[:, :, None], (2, 0)
    )


def _fill_borders(images: torch.Tensor, rows: torch.Tensor, boxes: torch.Tensor) -> None:
    """Give what lies outside of `boxes` (5, rows) their grey, in place; images (B, 1, H, W)."""
    _, _, height, width = images.shape
    wide, tall, x, y, grey = boxes[:, :, None]
    inside_x = (_places(width) - x).abs() <= wide  # (rows, W)
    inside_y = (_places(height) - y).abs() <= tall
    inside = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
    images[rows] = torch.where(inside, images[rows], grey[:, :, None, None])


def _places(side: int) -> torch.Tensor:
    """Centres of `side` pixels from -1 to 1."""
    return (2 * torch.arange(side) + 1) / side - 1


def _grid(matrix: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What functional.affine_grid(..., align_corners=False) gives, (B, H, W, 2), from one sum a coordinate.

    Each coordinate is a plane of its own in memory, which is also how grid_sample reads them fastest.
    """
    x, y = _places(width), _places(height)
    across = matrix[:, :, 0, None, None] * x  # (B, 2, 1, W)
    down = matrix[:, :, 1, None, None] * y[:, None] + matrix[:, :, 2, None, None]  # (B, 2, H, 1)
    return (across + down).permute(0, 2, 3, 1)


def _exposed(gray: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W) -> float32 0..1 (B, H, W), each image with its own gamma, (B,).

    An image has 256 levels at most, which is far fewer powers to compute than it has pixels.
    """
    levels = (torch.arange(256) / 255) ** gamma[:, None]  # (B, 256)
    return levels.gather(1, gray.flatten(1).long()).view(gray.shape)


def augment(gray: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """uint8 (B, H, W) -> uint8 (B, H, W), each image with its own flip, affine map, crop or borders, and exposure.

    The result is what the one preprocessing path normalises, so training and serving share it. What an affine map
    brings in from outside is black, as collimated borders of radiographs are.
    """
    count = len(gray)
    gamma, contrast, brightness = _uniform(count, (config.gamma, config.contrast, config.brightness), generator)
    images = _exposed(gray, torch.exp(gamma))[:, None]  # (B, 1, H, W)
    bordered = torch.nonzero(torch.rand(count, generator=generator) < config.border_probability).flatten()
    crops, boxes = _crops(count, config, generator), _WHOLE.repeat(1, count)
    borders = _borders(len(bordered), config, generator)
    crops[:, bordered], boxes[:, bordered] = _WHOLE, borders[:4]
    grid = _grid(_framed(_affine(count, config, generator), crops, boxes), *images.shape[2:])
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    contrast, brightness = (1 + change[:, None, None, None] for change in (contrast, brightness))
    images.sub_(mean).mul_(contrast).add_(mean * brightness)
    if config.noise:
        scale = torch.rand(count, 1, 1, 1, generator=generator) * config.noise
        images.add_(torch.randn(images.shape, generator=generator) * scale)
    if config.erase_probability:
        images = _erase(images, config.erase_probability, generator)
    _fill_borders(images, bordered, borders)
    return images.clamp_(0, 1)[:, 0].mul_(255).round_().to(torch.uint8)


def _erase(images: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Random erasing (Zhong et al. 2017, arXiv:1708.04896): one rectangle of 10-35 % of each side, mean grey."""
    _, _, height, width = images.shape
    for position in torch.nonzero(torch.rand(len(images), generator=generator) < probability).flatten().tolist():
        share = torch.rand(4, generator=generator)
        tall, wide = (int((0.10 + 0.25 * share[i].item()) * side) for i, side in ((0, height), (1, width)))
        top, left = int(share[2].item() * (height - tall)), int(share[3].item() * (width - wide))
        images[position, :, top : top + tall, left : left + wide] = images[position].mean()
    return images
