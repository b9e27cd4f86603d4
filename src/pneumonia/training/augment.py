"""Random changes to a batch of training images, in plain PyTorch."""

from __future__ import annotations

import torch
from torch.nn import functional

from pneumonia.config.schema import AugmentConfig


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


def _grid(matrix: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What functional.affine_grid(..., align_corners=False) gives, (B, H, W, 2), from one sum a coordinate.

    Each coordinate is a plane of its own in memory, which is also how grid_sample reads them fastest.
    """
    x, y = ((2 * torch.arange(side) + 1) / side - 1 for side in (width, height))
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
    """uint8 (B, H, W) -> uint8 (B, H, W), each image with its own flip, affine map and exposure.

    The result is what the one preprocessing path normalises, so training and serving share it. What an affine map
    brings in from outside is black, as collimated borders of radiographs are.
    """
    count = len(gray)
    gamma, contrast, brightness = _uniform(count, (config.gamma, config.contrast, config.brightness), generator)
    images = _exposed(gray, torch.exp(gamma))[:, None]  # (B, 1, H, W)
    grid = _grid(_affine(count, config, generator), *images.shape[2:])
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    contrast, brightness = (1 + change[:, None, None, None] for change in (contrast, brightness))
    images.sub_(mean).mul_(contrast).add_(mean * brightness)
    if config.noise:
        scale = torch.rand(count, 1, 1, 1, generator=generator) * config.noise
        images.add_(torch.randn(images.shape, generator=generator) * scale)
    if config.erase_probability:
        images = _erase(images, config.erase_probability, generator)
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
