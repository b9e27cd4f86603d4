"""The test images again under changes that leave the lungs and the label as they are: what a model really looks at."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from pneumonia.bundle import Manifest
from pneumonia.config.schema import EvaluationConfig
from pneumonia.core.metrics import metrics_with_intervals
from pneumonia.core.preprocess import FILTERS
from pneumonia.data.prepare import PreparedData

Pixels: TypeAlias = npt.NDArray[np.uint8]
FIGURES = ("auroc", "recall", "specificity", "ece")
BOUNDED = ("auroc", "recall", "specificity")
"""Figures whose worst value over the framing changes a gate can bound, as gate.stress_<name>."""
_PROGRESS_SECONDS = 10.0


@dataclass(frozen=True)
class Change:
    """One change. framing: whether it is of how the chest lies in the image, which the gate can bound."""

    title: str
    apply: Callable[[Pixels, Image.Resampling], Pixels]
    framing: bool = False

    def resampled(self, resample: Image.Resampling) -> Callable[[Pixels], Pixels]:
        """The change of one image, uint8 (H, W) to uint8 (H, W), scaling as the preprocessing does."""
        return lambda pixels: self.apply(pixels, resample)


def _crop(left: float, top: float, right: float, bottom: float) -> Change:
    """Shares of the sides that are cut off; what is left is scaled to the whole, as an image of another size is."""

    def apply(pixels: Pixels, resample: Image.Resampling) -> Pixels:
        height, width = pixels.shape
        box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
        return np.asarray(Image.fromarray(pixels).resize((width, height), resample, box))

    sides = {"left": left, "top": top, "right": right, "bottom": bottom}
    cut = [name for name, share in sides.items() if share]
    where = "each side" if len(cut) == 4 else " and ".join(cut)
    return Change(f"{max(sides.values()):.0%} of {where} cut off", apply, framing=True)


def _inside(across: float, down: float, grey: int | None, title: str) -> Change:
    """The image smaller, with borders of these shares of the sides around it; grey None goes on with the edges."""

    def apply(pixels: Pixels, resample: Image.Resampling) -> Pixels:
        height, width = pixels.shape
        x, y = round(across * width), round(down * height)
        small = np.asarray(Image.fromarray(pixels).resize((width - 2 * x, height - 2 * y), resample))
        if grey is None:
            return np.pad(small, ((y, y), (x, x)), mode="edge")
        return np.pad(small, ((y, y), (x, x)), constant_values=grey)

    return Change(title, apply, framing=True)


def _levels(title: str, function: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Change:
    """Grey levels 0..1 through a function."""

    def apply(pixels: Pixels, resample: Image.Resampling) -> Pixels:
        return np.asarray(np.clip(np.rint(function(pixels / 255) * 255), 0, 255), np.uint8)

    return Change(title, apply)


def _contrast(factor: float) -> Change:
    return _levels(f"contrast times {factor:g}", lambda levels: (levels - levels.mean()) * factor + levels.mean())


def _rotated(degrees: float) -> Change:
    def apply(pixels: Pixels, resample: Image.Resampling) -> Pixels:
        return np.asarray(Image.fromarray(pixels).rotate(degrees, Image.Resampling.BILINEAR))

    return Change(f"turned by {degrees:g} degrees", apply)


def _blurred(pixels: Pixels, resample: Image.Resampling) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1.5)))


def _recoded(pixels: Pixels, resample: Image.Resampling) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=20)
    return np.asarray(Image.open(stream))


def _coarse(pixels: Pixels, resample: Image.Resampling) -> Pixels:
    height, width = pixels.shape
    return np.asarray(Image.fromarray(pixels).resize((64, 64), resample).resize((width, height), resample))


def _blanked(centre: bool) -> Callable[[Pixels, Image.Resampling], Pixels]:
    """The outer seventh of each side, or the central four sevenths (of 224 pixels 32, or 128), in the mean grey."""

    def apply(pixels: Pixels, resample: Image.Resampling) -> Pixels:
        height, width = pixels.shape
        share = 3 / 14 if centre else 1 / 7
        inside = np.zeros(pixels.shape, bool)
        y, x = round(share * height), round(share * width)
        inside[y : height - y, x : width - x] = True
        return np.where(inside == centre, np.uint8(pixels.mean()), pixels)

    return apply


CHANGES: dict[str, Change] = {
    "crop_05": _crop(0.05, 0.05, 0.05, 0.05),
    "crop_10": _crop(0.10, 0.10, 0.10, 0.10),
    "crop_15": _crop(0.15, 0.15, 0.15, 0.15),
    "crop_left": _crop(0.15, 0, 0, 0),
    "crop_right": _crop(0, 0, 0.15, 0),
    "crop_top": _crop(0, 0.15, 0, 0),
    "crop_bottom": _crop(0, 0, 0, 0.15),
    "zoom_out": _inside(0.10, 0.10, None, "zoomed out by a fifth, edges drawn out"),
    "border_black": _inside(0.10, 0.10, 0, "black border, 10% of each side"),
    "border_white": _inside(0.10, 0.10, 255, "white border, 10% of each side"),
    "border_grey": _inside(0.10, 0.10, 128, "grey border, 10% of each side"),
    "letterbox": _inside(0, 0.15, 0, "black bars, 15% of top and bottom"),
    "pillarbox": _inside(0.15, 0, 0, "black bars, 15% of left and right"),
    "gamma_low": _levels("gamma .6", lambda levels: levels**0.6),
    "gamma_high": _levels("gamma 1.6", lambda levels: levels**1.6),
    "contrast_low": _contrast(0.7),
    "contrast_high": _contrast(1.3),
    "rotate_left": _rotated(10),
    "rotate_right": _rotated(-10),
    "blur": Change("blurred, 1.5 pixels", _blurred),
    "jpeg_20": Change("JPEG of quality 20", _recoded),
    "small_original": Change("originals of 64 pixels", _coarse),
    "frame_blanked": Change("outer seventh of each side blanked", _blanked(centre=False)),
    "centre_blanked": Change("central four sevenths blanked: hardly any lung is left", _blanked(centre=True)),
}
"""Every change by the name that metrics.json has for it."""


def stress_figures(
    model: Any, data: PreparedData, rows: npt.NDArray[np.int64], manifest: Manifest, evaluation: EvaluationConfig
) -> dict[str, Any]:
    """Figures of `model` on images `rows` under every change, at the served temperature and threshold.

    {"images": N, "changes": {name: {"title", "framing", figure: {"value", "low", "high"}}}, "worst": {figure:
    {"value", "change"}}}, the worst being of the framing changes. Of more than evaluation.stress_images images so many
    are taken, each with the same chance. Progress goes to stderr.
    """
    from pneumonia.training.dataset import predict_logits

    rows = _some(rows, evaluation.stress_images, evaluation.seed)
    labels, patients = data.labels[rows], data.patients[rows]
    resample = FILTERS[str(data.manifest["preprocessing"]["resample"])]
    began = said = time.monotonic()
    found: dict[str, Any] = {}
    for number, (name, change) in enumerate(CHANGES.items()):
        logits = predict_logits(model, data, rows, change=change.resampled(resample))
        figures = metrics_with_intervals(
            labels, manifest.point.probability(logits), manifest.threshold, patients,
            evaluation.bootstrap_samples, evaluation.seed, evaluation.prevalence,
        )  # fmt: skip
        found[name] = {"title": change.title, "framing": change.framing,
                       **{figure: figures[figure].to_json() for figure in FIGURES}}  # fmt: skip
        if (now := time.monotonic()) - said >= _PROGRESS_SECONDS:
            said = now
            left = (now - began) / (number + 1) * (len(CHANGES) - number - 1)
            print(f"stress: {number + 1} of {len(CHANGES)} changes, {left // 60:.0f} min {left % 60:.0f} s left",
                  file=sys.stderr, flush=True)  # fmt: skip
    print(f"stress: {len(rows)} images scored under {len(CHANGES)} changes", file=sys.stderr, flush=True)
    return {"images": len(rows), "changes": found, "worst": worst(found)}


def _some(rows: npt.NDArray[np.int64], most: int, seed: int) -> npt.NDArray[np.int64]:
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def worst(changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The least value of each of BOUNDED over the framing changes, and which change it was; undefined ones count as
    the least."""
    found = {}
    for figure in BOUNDED:
        values = {name: item[figure]["value"] for name, item in changes.items() if item["framing"]}
        name = min(values, key=lambda key: -1.0 if values[key] is None else values[key])
        found[figure] = {"value": values[name], "change": name}
    return found
