"""A checkpoint of any image classifier is a whole start, fed as it was trained, or refused before the training."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pneumonia import contract
from pneumonia.architecture import load_model
from pneumonia.bundle import Bundle
from pneumonia.config.compose import compose
from pneumonia.config.schema import ModelConfig
from pneumonia.data.prepare import PreparedData
from pneumonia.errors import BundleError, DataError
from pneumonia.training.model import build_model
from pneumonia.training.pretrained import PROCESSOR_FILE, head_of, require_usable
from pneumonia.training.train import train
from tests.phantoms import smoke_config

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_labels": 10}
STAGES = {"depths": [1, 1], "hidden_sizes": [16, 32], "num_labels": 10}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", {**SMALL, "patch_size": 32}),
    "deit": ("DeiT", {**SMALL, "patch_size": 32}),
    "dinov2": ("Dinov2", {**SMALL, "patch_size": 28, "image_size": 280}),
    "beit": ("Beit", {**SMALL, "patch_size": 32}),
    "swin": ("Swin", {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 7, "num_labels": 10}),
    "resnet": ("ResNet", {**STAGES, "embedding_size": 16, "layer_type": "basic"}),
    "convnext": ("ConvNext", {**STAGES, "num_stages": 2}),
}
"""Architectures that are known to work to the end, with settings of tiny ones."""


def _checkpoint(folder: Path, kind: str, **changes: Any) -> torch.nn.Module:
    name, settings = KINDS[kind]
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**{**settings, **changes})
    model = getattr(transformers, f"{name}ForImageClassification")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_known_architectures_pass_as_they_came(kind: str, tmp_path: Path) -> None:
    _checkpoint(tmp_path, kind)
    model = build_model(ModelConfig(checkpoint=str(tmp_path)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    require_usable(model, kind)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_one_whose_head_is_no_attribute_of_ours_trains_to_a_bundle(prepared: PreparedData, tmp_path: Path) -> None:
    _checkpoint(tmp_path / "checkpoint", "resnet")
    config = smoke_config(tmp_path, f"model.checkpoint={tmp_path / 'checkpoint'}", "training.max_steps=2")
    bundle = train(config, prepared.path, tmp_path / "run" / "bundle")
    assert head_of(load_model(bundle.path)).out_features == 2


def test_one_that_can_be_trained_and_not_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import ViTForImageClassification

    _checkpoint(tmp_path, "vit")
    model, plain = build_model(ModelConfig(checkpoint=str(tmp_path))), ViTForImageClassification.forward

    def for_two_images(self: Any, pixel_values: Any, **given: Any) -> Any:
        if torch.compiler.is_exporting():
            pixel_values = pixel_values + torch.zeros(2, 1, 1, 1)
        return plain(self, pixel_values=pixel_values, **given)

    require_usable(model, "plain")
    monkeypatch.setattr(ViTForImageClassification, "forward", for_two_images)
    with pytest.raises(DataError, match="plain: ViTForImageClassification cannot be trained and exported") as caught:
        require_usable(model, "plain")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_checkpoint_without_some_layers_is_refused(tmp_path: Path) -> None:
    _checkpoint(tmp_path, "vit")
    weights = load_file(tmp_path / contract.WEIGHTS_FILE)
    kept = {name: value for name, value in weights.items() if "layer.1." not in name and "layers.1." not in name}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / contract.WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"has no .*and \d+ more that fits ViT.*take the whole checkpoint"):
        build_model(ModelConfig(checkpoint=str(tmp_path)))


@pytest.mark.parametrize("terminal", [True, False])
def test_code_that_a_bundle_brings_is_not_run(
    trained: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    folder = Path(shutil.copytree(trained.path, tmp_path / "bundle"))
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Config: ...\n")
    config = json.loads((folder / contract.MODEL_CONFIG_FILE).read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / contract.MODEL_CONFIG_FILE).write_text(json.dumps(config))
    # transformers asks on a terminal whether it may, and takes a `y`.
    monkeypatch.setattr("builtins.input", lambda *_: "y" if terminal else pytest.fail("asked"))
    with pytest.raises(BundleError, match="no model that can be loaded") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert not ran.exists()


def test_a_checkpoint_of_another_shape_is_refused_and_another_head_is_not(tmp_path: Path) -> None:
    _checkpoint(tmp_path, "vit")
    shape = json.loads((tmp_path / contract.MODEL_CONFIG_FILE).read_text())
    (tmp_path / contract.MODEL_CONFIG_FILE).write_text(json.dumps({**shape, "intermediate_size": 96}))
    with pytest.raises(DataError, match="such layers would start from noise"):
        build_model(ModelConfig(checkpoint=str(tmp_path)))
    (tmp_path / contract.MODEL_CONFIG_FILE).write_text(json.dumps(shape))
    assert head_of(build_model(ModelConfig(checkpoint=str(tmp_path)))).out_features == 2


def test_one_that_cannot_take_the_image_is_refused_before_training(prepared: PreparedData, tmp_path: Path) -> None:
    _checkpoint(tmp_path / "checkpoint", "vit", image_size=384)
    config = smoke_config(tmp_path, f"model.checkpoint={tmp_path / 'checkpoint'}")
    with pytest.raises(DataError, match=r"cannot be trained and exported here \(ValueError: .*384"):
        train(config, prepared.path, tmp_path / "run" / "bundle")


@pytest.mark.parametrize("says", ["file", "setting"])
def test_a_checkpoint_is_fed_what_it_was_trained_with(says: str, tmp_path: Path) -> None:
    original = _checkpoint(tmp_path, "vit", num_labels=2)
    settings: dict[str, Any] = {"checkpoint": str(tmp_path)}
    if says == "file":
        (tmp_path / PROCESSOR_FILE).write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    else:
        settings.update(checkpoint_mean=0.5, checkpoint_std=0.5)
    model = build_model(ModelConfig(**settings)).eval()
    grey = torch.rand(4, *contract.TENSOR_INPUT_DIMS)
    mean, std = (torch.tensor(value)[:, None, None] for value in (contract.PIXEL_MEAN, contract.PIXEL_STD))
    with torch.inference_mode():
        expected = original(pixel_values=(grey - 0.5) / 0.5).logits
        torch.testing.assert_close(model(pixel_values=(grey - mean) / std).logits, expected, atol=1e-5, rtol=1e-5)
        assert (original(pixel_values=(grey - mean) / std).logits - expected).abs().max() > 1e-3


def test_statistics_that_cannot_be_folded_or_read_are_refused(tmp_path: Path) -> None:
    _checkpoint(tmp_path, "resnet")
    with pytest.raises(DataError, match="its first layer cannot take in"):
        build_model(ModelConfig(checkpoint=str(tmp_path), checkpoint_mean=0.5, checkpoint_std=0.5))
    (tmp_path / PROCESSOR_FILE).write_text(json.dumps({"image_mean": [0.5]}))
    with pytest.raises(DataError, match=re.escape(PROCESSOR_FILE)):
        build_model(ModelConfig(checkpoint=str(tmp_path)))


def test_a_bundle_s_weights_are_not_folded_again(trained: Bundle) -> None:
    again = build_model(ModelConfig(checkpoint=str(trained.path), checkpoint_mean=0.5, checkpoint_std=0.5))
    for value, expected in zip(again.parameters(), load_model(trained.path).parameters(), strict=True):
        assert torch.equal(value, expected)


def test_the_recipe_of_vit_base_knows_its_checkpoint_s_statistics() -> None:
    model = compose(["experiment=vit_base"]).model
    assert (model.checkpoint_mean, model.checkpoint_std) == (0.5, 0.5)
