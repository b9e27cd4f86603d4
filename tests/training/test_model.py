"""Architectures keep their weights through save and load, and their tensor contract."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pneumonia import contract
from pneumonia.architecture import load_model
from pneumonia.bundle import Bundle
from pneumonia.config.compose import compose
from pneumonia.config.schema import ModelConfig
from pneumonia.errors import BundleError, ConfigError, DataError, MissingPrerequisite
from pneumonia.training.model import build_model

TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "patch_size": 32}


POOLED = {"input_pool": 2, "standardize": True, "stem_blocks": [0, 0, 1, 1, 0]}
INSIDE = {**POOLED, "standardize_margin": 0.2}


@pytest.mark.parametrize(
    "settings",
    [{"architecture": "vit"}, {"architecture": "vit_conv_stem"}, POOLED, INSIDE],
    ids=["vit", "stem", "pooled", "inside"],
)
def test_a_saved_model_answers_the_same_after_loading(settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(**settings, **TINY)).eval()
    with torch.no_grad():
        # Weights away from their initial distribution, so that a layer left at its initialisation shows.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    pixel_values = torch.randn(2, *contract.TENSOR_INPUT_DIMS)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    with torch.inference_mode():
        expected = model(pixel_values=pixel_values).logits
        assert expected.shape == (2, 2)
        assert torch.equal(loaded(pixel_values=pixel_values).logits, expected)
    assert not loaded.training
    assert [loaded.config.id2label[index] for index in range(2)] == list(contract.LABELS)


def test_images_that_are_averaged_already_are_answered_as_whole_ones() -> None:
    model = build_model(ModelConfig(**POOLED, **TINY)).eval()
    whole = torch.randn(2, *contract.TENSOR_INPUT_DIMS)
    with torch.inference_mode():
        expected = model(pixel_values=whole).logits
        averaged = model(pixel_values=torch.nn.functional.avg_pool2d(whole, 2)).logits
    torch.testing.assert_close(averaged, expected)


def test_a_standardizing_model_does_not_see_exposure_or_contrast() -> None:
    torch.manual_seed(1)
    models = {on: build_model(ModelConfig(**{**POOLED, "standardize": on}, **TINY)).eval() for on in (True, False)}
    for model in models.values():
        for parameter in model.parameters():
            parameter.data.mul_(4)
    image = torch.randn(1, *contract.TENSOR_INPUT_DIMS)
    with torch.inference_mode():
        gaps = {
            on: (model(pixel_values=image * 0.7 + 0.4).logits - model(pixel_values=image).logits).abs().max().item()
            for on, model in models.items()
        }
    # LEAST_SPREAD leaves a trace of contrast: these pixels, averaged, have a standard deviation of only a half.
    assert gaps[True] < 0.3 * gaps[False]
    flat = models[True](pixel_values=torch.full((1, *contract.TENSOR_INPUT_DIMS), 0.3)).logits
    assert torch.isfinite(flat).all()


def test_statistics_from_inside_do_not_see_a_border() -> None:
    torch.manual_seed(1)
    image = torch.randn(1, *contract.TENSOR_INPUT_DIMS)
    bordered = image.clone()
    bordered[:, :, :44], bordered[:, :, :, -44:] = 2.6, -2.1
    for settings, blind in ((INSIDE, True), (POOLED, False)):
        stem = build_model(ModelConfig(**settings, **TINY)).eval().vit.embeddings.patch_embeddings
        seen: list[torch.Tensor] = []
        stem.convolutions.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with torch.inference_mode():
            for one in (image, bordered):
                stem(torch.nn.functional.avg_pool2d(one, 2))
        plain, framed = (one[:, :, 22:-22, 22:-22] for one in seen)
        assert torch.allclose(plain, framed) == blind


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"patch_size": 12}, "model.patch_size=12: vit_conv_stem takes 4, 8, 16 or 32"),
        ({"stem_blocks": [1, 1]}, "2 numbers, expected one for each of the 5 halvings"),
        ({"input_pool": 3}, "model.input_pool=3: do not divide 224"),
    ],
)
def test_a_stem_that_does_not_fit_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        ModelConfig(**{**TINY, **wrong})


def test_a_bundle_can_be_the_start(trained: Bundle) -> None:
    again = build_model(ModelConfig(checkpoint=str(trained.path)))
    for (name, value), (other, expected) in zip(
        again.state_dict().items(), load_model(trained.path).state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(value, expected)


@pytest.mark.parametrize("architecture", ["vit", "vit_conv_stem"])
def test_weights_that_do_not_cover_the_model_are_refused(architecture: str, tmp_path: Path) -> None:
    build_model(ModelConfig(architecture=architecture, **TINY)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / contract.WEIGHTS_FILE)
    name = next(key for key in weights if "classifier.weight" in key)
    weights["renamed"] = weights.pop(name)
    save_file(weights, tmp_path / contract.WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(BundleError, match="do not fit the architecture"):
        load_model(tmp_path)


def test_the_loss_has_a_gradient_everywhere() -> None:
    model = build_model(ModelConfig(**TINY)).train()
    output = model(pixel_values=torch.randn(2, *contract.TENSOR_INPUT_DIMS), labels=torch.tensor([0, 1]))
    output.loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_a_folder_in_hugging_face_format_can_be_the_start(tmp_path: Path) -> None:
    start = build_model(ModelConfig(architecture="vit", **TINY))
    start.save_pretrained(tmp_path)
    again = build_model(ModelConfig(checkpoint=str(tmp_path)))
    assert torch.equal(again.classifier.weight, start.classifier.weight)


def test_a_checkpoint_that_is_nowhere_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingPrerequisite, match="copy the checkpoint to a folder") as caught:
        build_model(ModelConfig(checkpoint="nobody/no-such-model"))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    build_model(ModelConfig(architecture="vit", **TINY)).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="about 0 million parameters, expected 86 million"):
        build_model(ModelConfig(checkpoint=str(tmp_path), expected_parameters=86))


def test_the_recipe_of_vit_base_is_the_mission_s() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = compose(["experiment=vit_base"])
    assert (config.model.checkpoint, config.model.learning_rate) == ("google/vit-base-patch16-224", 2e-5)
    assert (config.model.weight_decay, config.training.per_device_train_batch_size) == (0.01, 16)
    assert 3 <= config.training.num_train_epochs <= 5
    assert config.training.gradient_accumulation_steps > 1
    # On the meta device a model has shapes and no memory, which is all that counting takes.
    with torch.device("meta"):
        model = ViTForImageClassification(ViTConfig(num_labels=2))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == config.model.expected_parameters
