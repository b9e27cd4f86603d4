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


class ConvStemViTConfig(ViTConfig):  # type: ignore[misc]
    """A ViTConfig whose patch projection is a stack of 3x3 convolutions, halving the side once per entry.

    stem_channels: output channels of the stride-2 convolutions. stem_blocks: residual blocks after each of them, none
    where empty. input_pool: side of the squares of pixels that are averaged before anything else; `patch_size` has to
    be input_pool * 2 ** len(stem_channels). standardize: whether every image gets mean 0 and standard deviation 1
    first, so that exposure and contrast, which tell how an image was taken, are not there to be learned.
    """

    model_type = "vit_conv_stem"

    stem_channels: list[int] | tuple[int, ...] = (24, 48, 96, 192)
    stem_blocks: list[int] | tuple[int, ...] = ()
    input_pool: int = 1
    standardize: bool = False


class ConvStem(nn.Module):
    """Pixels to patch tokens through small convolutions (Xiao et al. 2021, arXiv:2106.14881).

    (B, 3, H, W) -> (B, H * W / patch_size ** 2, hidden_size)
    """

    def __init__(self, config: ConvStemViTConfig) -> None:
        super().__init__()
        if 2 ** len(config.stem_channels) != config.patch_size:
            raise ValueError(f"{len(config.stem_channels)} stem channels do not give patch_size {config.patch_size}")
        self.num_patches = (config.image_size // config.patch_size) ** 2
        self.image_size = (config.image_size, config.image_size)
        self.patch_size = (config.patch_size, config.patch_size)
        layers: list[nn.Module] = []
        channels = config.num_channels
        for width in config.stem_channels:
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.convolutions = nn.Sequential(*layers)
        # ViTModel reads the dtype it computes in from a module of this name.
        self.projection = nn.Conv2d(channels, config.hidden_size, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.projection(self.convolutions(pixel_values))
        return tokens.flatten(2).transpose(1, 2)


class ConvStemViTForImageClassification(ViTPreTrainedModel):  # type: ignore[misc]
    """A vision transformer behind a convolutional stem, classifying the mean of its patch tokens."""

    config_class = ConvStemViTConfig

    def __init__(self, config: ConvStemViTConfig) -> None:
        super().__init__(config)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.vit.embeddings.patch_embeddings = ConvStem(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> ImageClassifierOutput:
        """pixel_values float32 (B, 3, 224, 224), labels int64 (B,) -> logits float32 (B, 2), and a loss with labels."""
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
    the architecture: a layer left at its random initialisation must never answer.
    """
    model, report = AutoModelForImageClassification.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, dtype=torch.float32, use_safetensors=True
    )
    wrong = {key: sorted(map(str, report[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise BundleError(f"{folder}: weights do not fit the architecture ({wrong}); restore the bundle")
    if model.config.num_labels != len(contract.LABELS):
        raise BundleError(f"{folder}: {model.config.num_labels} classes, expected {len(contract.LABELS)}")
    return model.eval()  # type: ignore[no-any-return]
