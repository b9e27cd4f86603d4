"""Training throughput: `pneumoctl train`'s loop against bare forward and backward passes of the same model and batch.

    python benchmarks/training.py

Phantoms, experiment=local. The two are timed in turns, three rounds each, after a warm-up; the ratio is that of the
medians. The bare loop repeats one batch in memory: no reading, no augmentation, no optimiser, no averaged weights.
Writes its table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from _results import machine, write_section

ROUNDS = 3
STEPS = 60


def main() -> None:
    """Time both loops in turns and print the ratio."""
    from pneumonia.config.compose import compose
    from pneumonia.data.prepare import prepare
    from pneumonia.data.sources import fetch

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = compose(["experiment=local", "data=phantom", "data.num_images=1200", "tracking.uri=null",
                          f"training.max_steps={STEPS}", f"output_dir={folder}"])  # fmt: skip
        data = prepare(config, fetch(config.data, folder / "raw"), folder / "prepared")
        batch = config.training.per_device_train_batch_size
        pace: dict[str, list[float]] = {"training": [], "bare": []}
        for number in range(ROUNDS + 1):
            measured = training_and_bare(config, data, folder / f"run-{number}")
            for name, seconds in measured.items():
                if number:  # the first warms caches and kernels
                    pace[name].append(STEPS * batch / seconds)
    ours, bare = (statistics.median(pace[name]) for name in ("training", "bare"))
    rows = [
        machine("torch", "transformers"),
        f"\n{config.model.name}, batch {batch}, medians of {ROUNDS} rounds of {STEPS} steps.\n",
        "| loop | images/s | ratio |",
        "|---|---|---|",
        f"| bare forward and backward | {bare:.0f} | 1 |",
        f"| `pneumoctl train` | {ours:.0f} | {ours / bare:.2f} |",
        f"\nAsked for: at least .90, {'met' if ours / bare >= 0.9 else 'not met'}. What is between them: reading and "
        "changing the batch, clipping, AdamW and the average of the weights.",
    ]
    text = "\n".join(rows)
    print(text)
    write_section("Training throughput", text)


def training_and_bare(config: Any, data: Any, folder: Path) -> dict[str, float]:
    """Seconds of STEPS steps of both loops, with one model and one of its own batches."""
    import torch
    from transformers import TrainerCallback

    from pneumonia.training.tracking import NoTracker
    from pneumonia.training.train import make_trainer

    trainer = make_trainer(config, data, folder, NoTracker())
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    clock: dict[str, float] = {}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock["began"] = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock["ended"] = time.perf_counter()

    trainer.add_callback(Clock())
    trainer.train()
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(trainer.args.per_device_train_batch_size)])
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).train()
    began = time.perf_counter()
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
            loss = model(**inputs).loss
        loss.backward()
        model.zero_grad()
    return {"training": clock["ended"] - clock["began"], "bare": time.perf_counter() - began}


if __name__ == "__main__":
    main()
