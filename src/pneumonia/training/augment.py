"""Random changes to a batch of training images, in plain PyTorch."""

from __future__ import annotations

import torch
from torch.nn import functional

from pneumonia.config.schema import AugmentConfig


def _uniform(count: int, half_width: float, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(count, generator=generator) * 2 - 1) * half_width


def _affine(count: int, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Random inverse affine maps in grid_sample's -1..1 coordinates, (count, 2, 3)."""
    angle = torch.deg2rad(_uniform(count, config.rotate_degrees, generator))
    zoom = 1 + _uniform(count, config.scale, generator)
    aspect = 1 + _uniform(count, config.scale / 2, generator)
    flip = torch.where(torch.rand(count, generator=generator) < config.flip_probability, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    matrix = torch.empty(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = flip * cos * zoom * aspect, -sin * zoom * aspect
    matrix[:, 1, 0], matrix[:, 1, 1] = flip * sin * zoom / aspect, cos * zoom / aspect
    # A shift of a share of a side is twice that share in coordinates from -1 to 1.
    matrix[:, :, 2] = torch.stack([_uniform(count, 2 * config.translate, generator) for _ in range(2)], dim=1)
    return matrix


def _grid(matrix: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What functional.affine_grid(..., align_corners=False) gives, (B, H, W, 2), from one sum a coordinate.

    Each coordinate is a plane of its own in memory, which is also how grid_sample reads them fastest.
    """
    x, y = ((2 * torch.arange(side) + 1) / side - 1 for side in (width, height))
    across = matrix[:, :, 0, None, None] * x  # (B, 2, 1, W)
    down = matrix[:, :, 1, None, None] * y[:, None] + matrix[:, :, 2, None, None]  # (B, 2, H, 1)
    return (across + down).permute(0, 2, 3, 1)


def augment(gray: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """uint8 (B, H, W) -> uint8 (B, H, W), each image with its own flip, affine map and exposure.

    The result is what the one preprocessing path normalises, so training and serving share it. What an affine map
    brings in from outside is black, as collimated borders of radiographs are.
    """
    count = len(gray)
    images = gray[:, None].float() / 255  # (B, 1, H, W)
    grid = _grid(_affine(count, config, generator), *images.shape[2:])
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def each(half_width: float) -> torch.Tensor:
        return _uniform(count, half_width, generator)[:, None, None, None]

    if config.gamma:
        images = images.clamp_(min=1e-4) ** torch.exp(each(config.gamma))
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * (1 + each(config.contrast)) + mean * (1 + each(config.brightness))
    if config.noise:
        scale = torch.rand(count, 1, 1, 1, generator=generator) * config.noise
        images = images + torch.randn(images.shape, generator=generator) * scale
    if config.erase_probability:
        images = _erase(images, config.erase_probability, generator)
    return (images.clamp(0, 1)[:, 0] * 255).round().to(torch.uint8)


def _erase(images: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Random erasing (Zhong et al. 2017, arXiv:1708.04896): one rectangle of 10-35 % of each side, mean grey."""
    _, _, height, width = images.shape
    for position in torch.nonzero(torch.rand(len(images), generator=generator) < probability).flatten().tolist():
        share = torch.rand(4, generator=generator)
        tall, wide = (int((0.10 + 0.25 * share[i].item()) * side) for i, side in ((0, height), (1, width)))
        top, left = int(share[2].item() * (height - tall)), int(share[3].item() * (width - wide))
        images[position, :, top : top + tall, left : left + wide] = images[position].mean()
    return images
