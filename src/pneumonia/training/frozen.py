"""A linear head on the features of a frozen network: model.freeze=true.

The network sees every training image a few times, changed at random, and never again: the features of those views are
what the head is fitted to. That takes minutes where fine-tuning takes hours.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pneumonia import contract
from pneumonia.config.schema import Config
from pneumonia.core.metrics import point_metrics
from pneumonia.data.prepare import PreparedData
from pneumonia.training.dataset import Collator, PixelDataset
from pneumonia.training.precision import use_bf16
from pneumonia.training.pretrained import head_of

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the L2 penalty, of which validation AUROC chooses."""
_PROGRESS_SECONDS = 10.0


def features_of(
    model: nn.Module, collator: Collator, rows: npt.NDArray[np.int64], title: str, precision: str = "auto"
) -> npt.NDArray[np.float32]:
    """What the head of `model` is given for images `rows`, (len(rows), D), as `collator` makes and changes them."""
    taken: list[torch.Tensor] = []
    hook = head_of(model).register_forward_pre_hook(lambda _, given: taken.append(given[0].float().cpu()))
    dataset, began, said = PixelDataset(rows), time.monotonic(), time.monotonic()
    device = next(model.parameters()).device
    bf16 = use_bf16(precision, device.type == "cuda")
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            for start in range(0, len(rows), 32):
                items = [dataset[place] for place in range(start, min(start + 32, len(rows)))]
                model(pixel_values=collator(items)["pixel_values"].to(device))
                if (now := time.monotonic()) - said >= _PROGRESS_SECONDS:
                    said, done = now, start + len(items)
                    left = (now - began) / done * (len(rows) - done)
                    print(f"train: features of {title}, {done} of {len(rows)}, {left // 60:.0f} min {left % 60:.0f} s "
                          "left", file=sys.stderr, flush=True)  # fmt: skip
    finally:
        hook.remove()
    return torch.cat(taken).numpy()


def fit_head(config: Config, data: PreparedData, model: nn.Module) -> dict[str, float]:
    """Fit the head of `model` to features of `train`, in place; return what was chosen, with its figures on `val`.

    A logistic regression on standardised features, which are then folded into the head's weights. Both the features it
    is fitted to and the validation features that choose its penalty are of images changed at random: on plain ones a
    head that reads the frame looks as good as one that does not.
    """
    from sklearn.linear_model import LogisticRegression

    training = config.training
    train, val = data.indices("train"), data.indices("val")
    views = [
        features_of(
            model, Collator(data, training.augment, training.seed + view), train, f"view {view + 1} of training"
        )
        for view in range(config.model.freeze_views)
    ]
    judged = features_of(model, Collator(data, training.augment, training.seed), val, "validation")
    features = np.concatenate(views)
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    labels = np.tile(data.labels[train], config.model.freeze_views)
    best: dict[str, float] = {"auroc": -1.0}
    for penalty in PENALTIES:
        fitted = LogisticRegression(C=penalty, class_weight="balanced" if training.oversample else None, max_iter=1000)
        fitted.fit((features - mean) / spread, labels)
        probability = fitted.predict_proba((judged - mean) / spread)[:, 1]
        figures = point_metrics(data.labels[val], probability, 0.5)
        print(f"train: penalty {penalty:g}, AUROC {figures['auroc']:.4f} on changed validation images", file=sys.stderr)
        if figures["auroc"] > best["auroc"]:
            best = {"penalty": penalty, "auroc": figures["auroc"]}
            weight = fitted.coef_[0] / spread
            bias = float(fitted.intercept_[0]) - float(weight @ mean)
    _give(head_of(model), weight, bias)
    return best


@torch.no_grad()
def _give(head: nn.Linear, weight: npt.NDArray[np.floating[Any]], bias: float) -> None:
    """The margin w x + b as two logits that lie as far on either side of 0."""
    for index, sign in ((contract.NORMAL, -0.5), (contract.PNEUMONIA, 0.5)):
        head.weight[index] = sign * torch.as_tensor(weight, dtype=head.weight.dtype)
        head.bias[index] = sign * bias
