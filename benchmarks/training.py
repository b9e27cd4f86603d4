"""Training throughput: `pneumoctl train`'s loop against bare forward and backward passes of the same model and batch.

    python benchmarks/training.py

Phantoms; experiment=local, and experiment=vit_base from a checkpoint with random weights. The two are timed in turns,
three rounds each, after a warm-up and without the first step of each; the ratio is that of the medians. The bare loop
repeats one batch in memory: no reading, no augmentation, no optimiser, no averaged weights. Writes its table into
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from _results import machine, write_section

ROUNDS = 3
LEAST = 0.9
STEPS = {"local": 60, "vit_base": 4}
"""Optimiser steps of a round, by experiment."""


def main() -> None:
    """Time both loops in turns and print the ratios."""
    columns = ("experiment", "batch", "bare forward and backward, images/s", "`pneumoctl train`, images/s", "ratio",
               "asked for")  # fmt: skip
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    with tempfile.TemporaryDirectory() as scratch:
        rows += [measure(experiment, Path(scratch)) for experiment in STEPS]
    note = (
        f"Medians of {ROUNDS} rounds of {' and '.join(map(str, STEPS.values()))} steps. What is between them: reading "
        "and changing the batch, clipping, AdamW and the average of the weights, which is much beside a small model."
    )
    text = "\n".join([machine("torch", "transformers"), "", *rows, "", note])
    print(text)
    write_section("Training throughput", text)


def measure(experiment: str, folder: Path) -> str:
    """The row of one experiment."""
    from pneumonia.config.compose import compose
    from pneumonia.data.prepare import prepare
    from pneumonia.data.sources import fetch

    steps = STEPS[experiment]
    checkpoint = [f"model.checkpoint={vit_base(folder)}"] if experiment == "vit_base" else []
    config = compose([f"experiment={experiment}", "data=phantom", "data.num_images=1200", "tracking.uri=null",
                      "training.gradient_accumulation_steps=1", f"training.max_steps={steps}",
                      f"output_dir={folder}", *checkpoint])  # fmt: skip
    data = prepare(config, fetch(config.data, folder / "raw"), folder / "prepared")
    batch = config.training.per_device_train_batch_size
    pace: dict[str, list[float]] = {"training": [], "bare": []}
    for number in range(ROUNDS + 1):
        measured = training_and_bare(config, data, folder / f"{experiment}-{number}", steps)
        for name, seconds in measured.items():
            if number:  # the first warms caches and kernels
                pace[name].append((steps - 1) * batch / seconds)
    ours, bare = (statistics.median(pace[name]) for name in ("training", "bare"))
    verdict = "met" if ours / bare >= LEAST else "not met"
    return f"| {experiment} | {batch} | {bare:.1f} | {ours:.1f} | {ours / bare:.2f} | {LEAST:.2f}: {verdict} |"


def vit_base(folder: Path) -> Path:
    """A checkpoint of google/vit-base-patch16-224's shape with random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    ViTForImageClassification(ViTConfig(num_labels=1000)).save_pretrained(folder / "vit-base")
    return folder / "vit-base"


def training_and_bare(config: Any, data: Any, folder: Path, steps: int) -> dict[str, float]:
    """Seconds of all but the first of `steps` steps of both loops, with one model and one of its own batches."""
    import torch
    from transformers import TrainerCallback

    from pneumonia.training.tracking import NoTracker
    from pneumonia.training.train import make_trainer

    trainer = make_trainer(config, data, folder, NoTracker())
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    clock: dict[str, float] = {}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock["ended"] = time.perf_counter()
            clock.setdefault("began", clock["ended"])

    trainer.add_callback(Clock())
    trainer.train()
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(trainer.args.per_device_train_batch_size)])
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).train()
    for number in range(steps):
        if number == 1:
            began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
            loss = model(**inputs).loss
        loss.backward()
        model.zero_grad()
    return {"training": clock["ended"] - clock["began"], "bare": time.perf_counter() - began}


if __name__ == "__main__":
    main()
