"""The full-size recipe takes real optimiser steps, from a local checkpoint of google/vit-base-patch16-224's shape.

The weights are random, because no hub is needed to run the tests: this says that the recipe works, and nothing about
how good the fine-tuned model is.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from pneumonia.architecture import load_model
from pneumonia.bundle import open_bundle
from pneumonia.config.compose import compose
from pneumonia.data.prepare import PreparedData
from pneumonia.training.train import train


@pytest.mark.slow
def test_a_full_size_vit_trains_from_a_local_folder(prepared: PreparedData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    checkpoint = tmp_path / "vit-base-patch16-224"
    # The defaults of ViTConfig are those of the checkpoint, which classifies 1,000 kinds of objects.
    start = ViTForImageClassification(ViTConfig(num_labels=1000))
    start.save_pretrained(checkpoint)
    config = compose(
        ["experiment=vit_base", f"model.checkpoint={checkpoint}", "training.max_steps=3", "tracking.uri=null",
         "training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=2",
         "training.per_device_eval_batch_size=16", f"output_dir={tmp_path / 'runs'}"]
    )  # fmt: skip
    assert (config.model.learning_rate, config.model.weight_decay) == (2e-5, 0.01)
    bundle = train(config, prepared.path, tmp_path / "run" / "bundle")
    trained = load_model(bundle.path)
    assert round(sum(parameter.numel() for parameter in trained.parameters()) / 1e6) == 86
    # The layers come from the checkpoint and have moved; the head has two classes.
    own = dict(start.named_parameters())
    moved = [name for name, value in trained.named_parameters() if name in own and own[name].shape == value.shape
             and not torch.equal(own[name], value)]  # fmt: skip
    assert len(moved) > 100
    # The statistics that the checkpoint was trained with are folded into its first layer, which is another one then.
    same = [name for name in moved if "patch_embeddings.projection" not in name]
    gap = max((own[name] - dict(trained.named_parameters())[name]).abs().max().item() for name in same)
    assert gap < 1e-3
    assert 0 < open_bundle(bundle.path).manifest.threshold < 1
