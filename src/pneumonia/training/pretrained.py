"""A checkpoint as the start: all layers but the head are its own, fed as it was trained, or it is refused."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pneumonia import contract
from pneumonia.architecture import load_model
from pneumonia.config.schema import ModelConfig
from pneumonia.errors import DataError, PneumoniaError
from pneumonia.graph import write_graph

PROCESSOR_FILE = "preprocessor_config.json"
"""Where Hugging Face checkpoints say how their input was normalised."""


def head_of(model: nn.Module) -> nn.Linear:
    """The last layer, whose two outputs are the logits. Raises DataError where there is no such linear layer."""
    classes = len(contract.LABELS)
    found = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == classes]
    if len(found) != 1 or found[0].bias is None:
        raise DataError(
            f"model.checkpoint: {type(model).__name__} has {len(found)} linear layers of {classes} outputs, expected "
            "one, with a bias; take a checkpoint of another architecture, such as google/vit-base-patch16-224"
        )
    return found[0]


def require_layers(model: nn.Module, report: dict[str, Any], checkpoint: str) -> None:
    """Raise DataError where a layer other than the head is not in the checkpoint: it would be trained from noise.

    report: what from_pretrained says of missing and mismatched keys.
    """
    head = head_of(model)
    own = {name for name, value in model.named_parameters() if any(value is one for one in head.parameters())}
    lacking = {str(key) for key in report["missing_keys"]} | {str(item[0]) for item in report["mismatched_keys"]}
    if wrong := sorted(lacking - own):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(
            f"model.checkpoint={checkpoint}: has no {', '.join(wrong[:3])}{more} that fits {type(model).__name__}; "
            "such layers would start from noise, so take the whole checkpoint"
        )


def statistics_of(config: ModelConfig) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel that the checkpoint was trained with, for values in 0..1.

    A bundle's are the contract's. Of others its preprocessor_config.json counts, and where there is none,
    model.checkpoint_mean and _std.
    """
    from transformers.utils import cached_file

    checkpoint = str(config.checkpoint)
    if (Path(checkpoint) / contract.BUNDLE_MANIFEST).is_file():
        return contract.PIXEL_MEAN, contract.PIXEL_STD
    found = cached_file(checkpoint, PROCESSOR_FILE, local_files_only=Path(checkpoint).is_dir(),
                        _raise_exceptions_for_missing_entries=False,
                        _raise_exceptions_for_connection_errors=False)  # fmt: skip
    if found is None:
        return _three(config.checkpoint_mean, contract.PIXEL_MEAN), _three(config.checkpoint_std, contract.PIXEL_STD)
    try:
        says = json.loads(Path(found).read_text("utf-8"))
        mean, std = says["image_mean"], says["image_std"]
        if len(mean) != 3 or len(std) != 3 or min(map(float, std)) <= 0:
            raise ValueError(f"image_mean {mean}, image_std {std}")
        return [float(value) for value in mean], [float(value) for value in std]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"model.checkpoint={checkpoint}: its {PROCESSOR_FILE} gives no mean and std of three channels ({error}); "
            "mend the file, or remove it and set model.checkpoint_mean and model.checkpoint_std"
        ) from error


def _three(value: float | None, otherwise: Sequence[float]) -> Sequence[float]:
    return otherwise if value is None else [value] * 3


@torch.no_grad()
def fold_statistics(model: nn.Module, mean: Sequence[float], std: Sequence[float], checkpoint: str) -> None:
    """Change the first convolution so that images normalised by the contract give what the checkpoint's own gave.

    Both normalisations are affine, and so is the convolution: W' = W s / std, b' = b + sum W (m - mean) / std, with m
    and s of the contract. Exact but for rounding. Raises DataError where the convolution pads, because its zeros would
    mean another grey, or has no bias to take the rest.
    """
    ours_mean, ours_std = torch.tensor(contract.PIXEL_MEAN), torch.tensor(contract.PIXEL_STD)
    theirs_mean, theirs_std = torch.tensor(mean), torch.tensor(std)
    if torch.allclose(ours_mean, theirs_mean, atol=1e-3) and torch.allclose(ours_std, theirs_std, atol=1e-3):
        return
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.in_channels == 3), None)
    if first is None or first.bias is None or any(map(int, first.padding)):
        raise DataError(
            f"model.checkpoint={checkpoint}: trained with mean {list(mean)} and std {list(std)}, which its first layer "
            "cannot take in (a convolution of three channels with a bias and without padding can); take a checkpoint "
            "trained with ImageNet's statistics"
        )
    shift = (ours_mean - theirs_mean) / theirs_std
    first.bias += (first.weight * shift[:, None, None]).sum(dim=(1, 2, 3))
    first.weight *= (ours_std / theirs_std)[:, None, None]
    print(f"train: input statistics of {checkpoint} (mean {mean[0]:g}, std {std[0]:g}) folded into its first layer",
          file=sys.stderr)  # fmt: skip


def require_usable(model: nn.Module, checkpoint: str) -> None:
    """Raise DataError where `model` cannot be trained, saved, read again or exported: before the training, not after.

    It answers images of the contract's size, with a loss that has a gradient in the head, and what is saved and read
    again answers the same, as PyTorch and as ONNX. That takes seconds.
    """
    import onnxruntime

    images = torch.randn(3, *contract.TENSOR_INPUT_DIMS, generator=torch.Generator().manual_seed(0))
    was_training = model.training
    model.eval()  # Statistics of batches are not to learn from noise.
    try:
        output = model(pixel_values=images, labels=torch.tensor([0, 1, 1]))
        output.loss.backward()
        if head_of(model).weight.grad is None:
            raise DataError("its head gets no gradient")
        model.zero_grad(set_to_none=True)
        with torch.no_grad(), tempfile.TemporaryDirectory(prefix="checkpoint.") as folder:
            expected = model(pixel_values=images).logits
            if tuple(expected.shape) != (len(images), len(contract.LABELS)):
                raise DataError(f"its logits are {tuple(expected.shape)}")
            model.save_pretrained(folder)  # type: ignore[operator]
            again, graph = load_model(Path(folder)), Path(folder) / contract.ONNX_FILE
            torch.testing.assert_close(again(pixel_values=images).logits, expected)
            write_graph(again, graph)
            session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
            said = session.run([contract.TENSOR_OUTPUT], {contract.TENSOR_INPUT: images.numpy()})[0]
            torch.testing.assert_close(torch.from_numpy(said), expected, atol=1e-3, rtol=1e-3)
    except Exception as error:  # Any architecture of a library of hundreds; each fails in its own way.
        reason = str(error) if isinstance(error, PneumoniaError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"model.checkpoint={checkpoint}: {type(model).__name__} cannot be trained and exported here "
            f"({' '.join(reason.split())[:300]}); take a checkpoint of another architecture, such as "
            "google/vit-base-patch16-224"
        ) from error
    finally:
        model.train(was_training)
