"""Training throughput: `pneumoctl train`'s loop against bare forward and backward passes of the same model and batch.

    python benchmarks/training.py

Phantoms; experiment=local, and experiment=vit_base from a checkpoint with random weights. Within one training the two
take turns of a few steps, so that what else the machine does meets both: after every turn of training a copy of the
model, as it was at the start, makes as many bare passes. The first step of each turn, which finds the other's memory in
the caches, and the first turns, which warm up, do not count; the ratio is the median over the turns. The bare loop
repeats one batch in memory: no reading, no augmentation, no optimiser, no averaged weights. Writes its table into
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from _results import machine, write_section

LEAST = 0.9
TURNS = {"local": (10, 25, 8), "vit_base": (1, 3, 3)}
"""Turns that warm up and turns that count, of each loop, and the steps of one, by experiment."""


def main() -> None:
    """Time both loops in turns and print the ratios."""
    columns = ("experiment", "batch", "bare forward and backward, images/s", "`pneumoctl train`, images/s", "ratio",
               "asked for")  # fmt: skip
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    with tempfile.TemporaryDirectory() as scratch:
        rows += [measure(experiment, Path(scratch)) for experiment in TURNS]
    note = (
        f"Medians over {' and '.join(str(turns) for _, turns, _ in TURNS.values())} turns of "
        f"{' and '.join(str(steps) for *_, steps in TURNS.values())} steps. What is between them: reading and changing "
        "the batch, AdamW, the average of the weights and, for vit_base, clipping, which is much beside a small model."
    )
    text = "\n".join([machine("torch", "transformers"), "", *rows, "", note])
    print(text)
    write_section("Training throughput", text)


def measure(experiment: str, folder: Path) -> str:
    """The row of one experiment."""
    from pneumonia.config.compose import compose
    from pneumonia.data.prepare import prepare
    from pneumonia.data.sources import fetch

    warm_up, turns, steps = TURNS[experiment]
    checkpoint = [f"model.checkpoint={vit_base(folder)}"] if experiment == "vit_base" else []
    config = compose([f"experiment={experiment}", "data=phantom", "data.num_images=1200", "tracking.uri=null",
                      "training.gradient_accumulation_steps=1", f"training.max_steps={(warm_up + turns) * steps}",
                      f"output_dir={folder}", *checkpoint])  # fmt: skip
    data = prepare(config, fetch(config.data, folder / "raw"), folder / "prepared")
    batch = config.training.per_device_train_batch_size
    measured = in_turns(config, data, folder / experiment, steps)[warm_up:]
    ours, bare = (batch / statistics.median(seconds) for seconds in zip(*measured, strict=True))
    ratio = statistics.median(bare / training for training, bare in measured)
    verdict = "met" if ratio >= LEAST else "not met"
    return f"| {experiment} | {batch} | {bare:.1f} | {ours:.1f} | {ratio:.2f} | {LEAST:.2f}: {verdict} |"


def vit_base(folder: Path) -> Path:
    """A checkpoint of google/vit-base-patch16-224's shape with random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    ViTForImageClassification(ViTConfig(num_labels=1000)).save_pretrained(folder / "vit-base")
    return folder / "vit-base"


def in_turns(config: Any, data: Any, folder: Path, steps: int) -> list[tuple[float, float]]:
    """Seconds a step of both loops, by turn; each turn has `steps` of both, of which all but the first count."""
    import torch
    from transformers import TrainerCallback

    from pneumonia.training.tracking import NoTracker
    from pneumonia.training.train import make_trainer

    trainer = make_trainer(config, data, folder, NoTracker())
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(trainer.args.per_device_train_batch_size)])
    model = copy.deepcopy(trainer.model).train()

    def bare() -> float:
        for number in range(steps):
            if number == 1:
                began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
                loss = model(**inputs).loss
            loss.backward()
            model.zero_grad()
        return (time.perf_counter() - began) / (steps - 1)

    measured: list[tuple[float, float]] = []
    clock: list[float] = []

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.append(time.perf_counter())
            if len(clock) == steps:
                measured.append(((clock[-1] - clock[0]) / (steps - 1), bare()))
                clock.clear()

    trainer.add_callback(Turns())
    trainer.train()
    return measured


if __name__ == "__main__":
    main()
