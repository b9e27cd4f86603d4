"""Model architectures in Hugging Face form; beside core, so that inference loads them without importing training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.vit.modeling_vit import ViTModel, ViTPreTrainedModel
from transformers.utils.logging import disable_progress_bar

from pneumonia import contract
from pneumonia.errors import BundleError

LEAST_SPREAD = 0.09
"""Added to the standard deviation, in units of normalised pixels (.02 of the full range): an image of one grey stays
one, instead of becoming amplified noise."""


class ConvStemViTConfig(ViTConfig):  # type: ignore[misc]
    """A ViTConfig whose patch projection is a stack of 3x3 convolutions, halving the side once per entry.

    stem_channels: output channels of the stride-2 convolutions; `patch_size` has to be 2 ** len(stem_channels).
    stem_blocks: residual blocks after each of them; empty for none. input_pool: side of the squares of pixels that are
    averaged before anything else, so that `patch_size` counts averaged pixels. standardize: whether every image gets
    mean 0 and standard deviation 1 first, which takes away exposure and contrast: they tell how an image was made, not
    what it shows. standardize_margin: share of each side that these two figures leave out, so that they are of the body
    and not of what lies around it.
    """

    model_type = "vit_conv_stem"

    stem_channels: list[int] | tuple[int, ...] = (24, 48, 96, 192)
    stem_blocks: list[int] | tuple[int, ...] = ()
    input_pool: int = 1
    standardize: bool = False
    standardize_margin: float = 0.0


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015, arXiv:1512.03385); (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.first_norm(self.first(features)))
        return torch.relu(features + self.second_norm(self.second(inner)))


class ConvStem(nn.Module):
    """Pixels to patch tokens through small convolutions (Xiao et al. 2021, arXiv:2106.14881).

    (B, 3, side, side) with side = image_size / input_pool -> (B, num_patches, hidden_size).
    """

    def __init__(self, config: ConvStemViTConfig) -> None:
        super().__init__()
        if 2 ** len(config.stem_channels) != config.patch_size:
            raise ValueError(f"{len(config.stem_channels)} stem channels do not give patch_size {config.patch_size}")
        self.standardize = config.standardize
        side = config.image_size // config.input_pool
        self.inside = slice(edge := round(config.standardize_margin * side), side - edge)
        self.num_patches = (-(-side // config.patch_size)) ** 2  # the last patch of a row may reach over the border
        self.image_size = (side, side)
        self.patch_size = (config.patch_size, config.patch_size)
        layers: list[nn.Module] = []
        channels = config.num_channels
        blocks = config.stem_blocks or [0] * len(config.stem_channels)
        for width, count in zip(config.stem_channels, blocks, strict=True):
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [ResidualBlock(width) for _ in range(count)]
            channels = width
        self.convolutions = nn.Sequential(*layers)
        # ViTModel reads the dtype it computes in from a module of this name.
        self.projection = nn.Conv2d(channels, config.hidden_size, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.standardize:
            centred = pixel_values - pixel_values[:, :, self.inside, self.inside].mean(dim=(2, 3), keepdim=True)
            spread = centred[:, :, self.inside, self.inside].square().mean(dim=(2, 3), keepdim=True).sqrt()
            pixel_values = centred / (spread + LEAST_SPREAD)
        tokens: torch.Tensor = self.projection(self.convolutions(pixel_values))
        return tokens.flatten(2).transpose(1, 2)


class ConvStemViTForImageClassification(ViTPreTrainedModel):  # type: ignore[misc]
    """A vision transformer behind a convolutional stem, classifying the mean of its patch tokens."""

    config_class = ConvStemViTConfig

    def __init__(self, config: ConvStemViTConfig) -> None:
        super().__init__(config)
        self.vit = ViTModel(config, add_pooling_layer=False)
        stem = self.vit.embeddings.patch_embeddings = ConvStem(config)
        positions = torch.empty(1, 1 + stem.num_patches, config.hidden_size)
        nn.init.trunc_normal_(positions, std=config.initializer_range)
        self.vit.embeddings.position_embeddings = nn.Parameter(positions)
        self.vit.embeddings.image_size = stem.image_size
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # A block that starts as its shortcut trains sooner (Goyal et al. 2017, arXiv:1706.02677, 5.1).
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.second_norm.weight)

    def forward(
        self, pixel_values: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> ImageClassifierOutput:
        """pixel_values float32 (B, 3, 224, 224), labels int64 (B,) -> logits float32 (B, 2), and a loss with labels.

        Training feeds images that are averaged already, smaller by input_pool on each side, which saves most of the
        work of changing them at random.
        """
        if self.config.input_pool > 1 and pixel_values is not None and pixel_values.shape[-1] == self.config.image_size:
            pixel_values = nn.functional.avg_pool2d(pixel_values, self.config.input_pool)
        hidden = self.vit(pixel_values=pixel_values).last_hidden_state  # (B, 1 + patches, D)
        logits = self.classifier(hidden[:, 1:].mean(dim=1))  # (B, 2)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


# Its bars for reading and writing one small file would drown the progress that matters.
disable_progress_bar()

AutoConfig.register(ConvStemViTConfig.model_type, ConvStemViTConfig)
AutoModelForImageClassification.register(ConvStemViTConfig, ConvStemViTForImageClassification)


def load_model(folder: Path) -> nn.Module:
    """The model of a bundle or of another folder in Hugging Face format, on the CPU, float32, in eval mode.

    Its forward(pixel_values=(B, 3, 224, 224)).logits is (B, 2). Raises BundleError where the weights do not cover
    the architecture, because a layer left at its random initialisation must never answer, and where config.json names
    an architecture that is not transformers' or ours: code that a model brings along is not run.
    """
    options = {"local_files_only": True, "output_loading_info": True, "use_safetensors": True}
    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, **options
        )
    except (ValueError, OSError) as error:
        why = " ".join(str(error).split())[:300]
        raise BundleError(f"{folder}: no model that can be loaded ({why}); restore the bundle") from error
    wrong = {key: sorted(map(str, report[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise BundleError(f"{folder}: weights do not fit the architecture ({wrong}); restore the bundle")
    if model.config.num_labels != len(contract.LABELS):
        raise BundleError(f"{folder}: {model.config.num_labels} classes, expected {len(contract.LABELS)}")
    return model.eval()  # type: ignore[no-any-return]
