"""The model that a run starts from: new, from the hub, from a folder or from a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pneumonia import contract
from pneumonia.config.schema import ModelConfig
from pneumonia.errors import DataError, MissingPrerequisite

_LABELS = {
    "num_labels": len(contract.LABELS),
    "id2label": dict(enumerate(contract.LABELS)),
    "label2id": {label: index for index, label in enumerate(contract.LABELS)},
}
HUB_TIMEOUT_S = 5.0
_OTHERWISE = "train from scratch with experiment=local"
_STEM_WIDTHS = (16, 32, 64, 128, 192)
"""Channels of the stride-2 convolutions, shortest stem first: patch_size 16 takes four of them, 32 takes five."""


def require_checkpoint(config: ModelConfig) -> None:
    """Raise MissingPrerequisite where `config.checkpoint` is neither here nor on a hub that answers: before any work.

    Of a hub only the head of a small file is asked for. Without a checkpoint nothing is asked or imported.
    """
    if config.checkpoint:
        require_model("model.checkpoint", config.checkpoint, _OTHERWISE)


def require_on_hub(config: ModelConfig) -> None:
    """As `require_checkpoint`, for a name alone: a folder may be where only the step that trains can see it."""
    if config.checkpoint and not config.checkpoint.startswith(("/", ".", "~")):
        require_checkpoint(config)


def require_model(key: str, name: str, otherwise: str) -> None:
    """Raise MissingPrerequisite where the model `name`, of the setting `key`, is neither here nor on a hub."""
    if Path(name).is_dir():
        if not (Path(name) / contract.MODEL_CONFIG_FILE).is_file():
            raise missing_model(key, name, otherwise)
        return
    # Asked for once: transformers would try six times, half a minute, and longer where nobody refuses.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(name, contract.MODEL_CONFIG_FILE), str):
            get_hf_file_metadata(hf_hub_url(name, contract.MODEL_CONFIG_FILE), timeout=HUB_TIMEOUT_S)
    except Exception as error:  # The package lets through what its HTTP library raises, which changes with versions.
        raise missing_model(key, name, otherwise) from error


def missing_model(key: str, name: str, otherwise: str) -> MissingPrerequisite:
    """The error of a model that is nowhere. otherwise: what to do without it."""
    return MissingPrerequisite(
        f"{key}={name}: neither a folder here nor on a hub that answers; copy the checkpoint to a folder and name "
        f"that, or {otherwise}"
    )


def build_model(config: ModelConfig) -> Any:
    """A transformers model whose forward(pixel_values, labels) gives a loss and logits (B, 2).

    Raises MissingPrerequisite where `checkpoint` is neither here nor on a reachable hub, DataError where it is not
    an image classifier, lacks layers, or cannot be fed as it was trained.
    """
    model = _from_checkpoint(config, config.checkpoint) if config.checkpoint else _from_scratch(config)
    millions = round(sum(parameter.numel() for parameter in model.parameters()) / 1e6)
    if config.expected_parameters not in (None, millions):
        raise DataError(
            f"model.checkpoint={config.checkpoint}: about {millions} million parameters, expected "
            f"{config.expected_parameters} million; name the right checkpoint, or set model.expected_parameters=null"
        )
    return model


def _from_scratch(config: ModelConfig) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    from pneumonia.architecture import ConvStemViTConfig, ConvStemViTForImageClassification

    shape = {
        "image_size": contract.IMAGE_SIZE,
        "patch_size": config.patch_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        **_LABELS,
    }
    if config.architecture == "vit":
        return ViTForImageClassification(ViTConfig(**shape))
    halvings = config.patch_size.bit_length() - 1
    stem = {"stem_channels": list(_STEM_WIDTHS[:halvings]), "stem_blocks": list(config.stem_blocks)}
    own = {
        "input_pool": config.input_pool,
        "standardize": config.standardize,
        "standardize_margin": config.standardize_margin,
    }
    return ConvStemViTForImageClassification(ConvStemViTConfig(**shape, **stem, **own))


def _from_checkpoint(config: ModelConfig, checkpoint: str) -> Any:
    from transformers import AutoModelForImageClassification

    import pneumonia.architecture  # noqa: F401  registers our architecture with the Auto classes
    from pneumonia.training.pretrained import fold_statistics, require_layers, statistics_of

    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            checkpoint,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=Path(checkpoint).is_dir(),
            use_safetensors=True,
            trust_remote_code=False,
            **_LABELS,
        )
    except OSError as error:
        raise missing_model("model.checkpoint", checkpoint, _OTHERWISE) from error
    except (ValueError, ImportError) as error:
        raise DataError(f"model.checkpoint={checkpoint}: not an image classifier ({error})") from error
    require_layers(model, report, checkpoint)
    fold_statistics(model, *statistics_of(config), checkpoint)
    return model
