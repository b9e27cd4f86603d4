"""From a prepared data set to a bundle: train, keep the best epoch, choose temperature and threshold on validation."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalPrediction

from pneumonia import __version__, contract
from pneumonia.architecture import load_model
from pneumonia.bundle import Bundle, Manifest, open_bundle, write_bundle
from pneumonia.config.compose import to_yaml
from pneumonia.config.schema import Config
from pneumonia.core.calibration import choose_threshold, fit_temperature_and_offset, too_few_to_show
from pneumonia.core.metrics import metrics_with_intervals, point_metrics
from pneumonia.core.prediction import pneumonia_probability
from pneumonia.core.preprocess import Preprocessing
from pneumonia.data.prepare import PreparedData, load_prepared
from pneumonia.errors import MissingPrerequisite, UsageError
from pneumonia.files import check_replaceable, replace_directory, write_json, write_text, writing_to
from pneumonia.training.averaging import WeightAverage
from pneumonia.training.checkpoints import resume_point, start_anew
from pneumonia.training.dataset import Collator, PixelDataset, predict_logits, training_rows
from pneumonia.training.frozen import fit_head
from pneumonia.training.interrupt import StopOnSignal
from pneumonia.training.memory import keep_freed_memory
from pneumonia.training.model import build_model, require_checkpoint
from pneumonia.training.precision import use_bf16
from pneumonia.training.pretrained import head_of, require_usable
from pneumonia.training.processes import is_main, wait_for_all, world_size
from pneumonia.training.tracking import BUNDLE_TAG, NoTracker, Tracker, shown, track

_LIBRARIES = ("torch", "transformers", "numpy", "pillow", "imbalanced-learn")
_DATA_KEYS = ("digest", "source", "synthetic", "patients", "split", "counts")
CHECKPOINTS = "checkpoints"
PROGRESS_SECONDS = 10.0


class PneumoniaTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that augments only what it trains on, and whose checkpoints load back to the weights they hold."""

    data_collator: Any

    def __init__(self, *, eval_collator: Collator, ema_decay: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.eval_collator = eval_collator
        self.average = WeightAverage(self.model, ema_decay)
        self.add_callback(_Averaging(self.average))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As Trainer's, without augmentation and with the last, smaller batch."""
        training = self.data_collator, self.args.dataloader_drop_last
        self.data_collator, self.args.dataloader_drop_last = self.eval_collator, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator, self.args.dataloader_drop_last = training

    def floating_point_ops(self, inputs: Any) -> int:
        """0: Trainer would walk through all modules every step for a figure that nobody reads."""
        return 0

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # Trainer would walk through all gradients for their length although it is not to shorten them.
        return grad_norm

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Trainer saves under the hub's key names but loads under the model's own, which leaves layers at their random
        # initialisation after a resume or a best-checkpoint load. Saving under the model's own names mends both.
        folder = output_dir if output_dir is not None else self.args.output_dir
        model = self.accelerator.unwrap_model(self.model)
        model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
        torch.save(self.args, Path(folder) / "training_args.bin")
        self.average.save(Path(folder))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # Trainer's own rotation goes by file times, and a clock that is set back makes the newest the oldest.
        super()._save_checkpoint(*args, **kwargs)
        if not is_main():  # Processes of one run share the folder, and one of them is enough to clear it.
            return
        best = Path(self.state.best_model_checkpoint or "").name
        for folder in Path(self.args.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            if folder.name not in (f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}", best):
                shutil.rmtree(folder)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, with the averaged weights, which are the ones that the bundle gets."""
        with self.average.swapped_in(self.model):
            return super().evaluation_loop(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.average.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self.average.load(Path(self.state.best_model_checkpoint))
        self.average.copy_to(self.model)


class _Averaging(TrainerCallback):  # type: ignore[misc]
    """Feeds every optimiser step to the average."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.average.update(state.global_step)


class _Progress(TrainerCallback):  # type: ignore[misc]
    """A line on stderr every few seconds, and every epoch's figures to the tracker."""

    def __init__(self, tracker: Tracker, batch: int) -> None:
        self.tracker = tracker
        self.batch = batch
        self.started = self.said = time.monotonic()
        self.first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self.said = time.monotonic()
        self.first_step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        if now - self.said < PROGRESS_SECONDS or not state.is_world_process_zero:
            return
        self.said = now
        pace = (state.global_step - self.first_step) / (now - self.started)
        left = (state.max_steps - state.global_step) / pace
        print(
            f"train: step {state.global_step}/{state.max_steps}, epoch {state.epoch:.1f}, "
            f"{pace * self.batch:.0f} images/s, {left // 60:.0f} min {left % 60:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        figures = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self.tracker.log(figures, step=state.global_step)
        if "eval_auroc" in figures and state.is_world_process_zero:
            print(
                f"train: epoch {figures['epoch']:.1f}, validation AUROC {figures['eval_auroc']:.4f}, "
                f"loss {figures['eval_loss']:.4f}",
                file=sys.stderr,
                flush=True,
            )


def _arguments(config: Config, folder: Path) -> TrainingArguments:
    training = config.training
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        optim="adamw_torch_fused",
        learning_rate=config.model.learning_rate,
        weight_decay=config.model.weight_decay,
        warmup_steps=training.warmup_ratio,
        lr_scheduler_type=training.lr_scheduler_type,
        label_smoothing_factor=training.label_smoothing_factor,
        max_grad_norm=training.max_grad_norm,
        bf16=use_bf16(training.precision, cuda),
        use_cpu=not cuda,
        ddp_backend=None if cuda or world_size() == 1 else "gloo",
        seed=training.seed,
        data_seed=training.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="auroc",
        greater_is_better=True,
        # Batch statistics of a last batch with one image would be meaningless.
        dataloader_drop_last=True,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )


def _validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    probability = pneumonia_probability(np.asarray(prediction.predictions), 1.0)
    figures = point_metrics(np.asarray(prediction.label_ids, np.int64), probability, 0.5)
    return {name: value for name, value in figures.items() if not np.isnan(value)}


def make_trainer(config: Config, data: PreparedData, folder: Path, tracker: Tracker) -> PneumoniaTrainer:
    """The Trainer for `config`, its checkpoints under `folder`. Test images are not among what it is given."""
    training = config.training
    rows = training_rows(data, training.oversample, training.seed)
    accumulated = training.per_device_train_batch_size * training.gradient_accumulation_steps * world_size()
    if len(rows) < training.per_device_train_batch_size * world_size():
        raise MissingPrerequisite(
            f"{len(rows)} training images for training.per_device_train_batch_size="
            f"{training.per_device_train_batch_size} in {world_size()} process(es): bring more images or lower the "
            "batch size"
        )
    keep_freed_memory()
    set_seed(training.seed)
    model = build_model(config.model)
    if config.model.checkpoint and is_main():
        require_usable(model, config.model.checkpoint)
    if world_size() > 1 and torch.cuda.is_available():
        # Statistics of the whole batch, as one process has them. There is no such layer for processors.
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    trainer = PneumoniaTrainer(
        model=model,
        args=_arguments(config, folder),
        train_dataset=PixelDataset(rows),
        eval_dataset=PixelDataset(data.indices("val")),
        data_collator=Collator(data, training.augment, training.seed, getattr(model.config, "input_pool", 1)),
        eval_collator=Collator(data, None, training.seed),
        ema_decay=training.ema_decay,
        compute_metrics=_validation_metrics,
        callbacks=[_Progress(tracker, accumulated)],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def train(config: Config, prepared: Path, out: Path) -> Bundle:
    """Train on the `train` split of `prepared` and write the bundle `out`.

    The best epoch (validation AUROC), the temperature and the threshold come from the `val` split; `test` is not
    looked at. Checkpoints and the resolved configuration lie beside `out`. Under torchrun every process calls this and
    the first one writes; batch sizes are those of one process, and all share the disk of `out`. Raises GateRefused
    where no threshold meets evaluation.recall_target, MissingPrerequisite where a checkpoint to start or resume from
    is missing, ConfigError where that to resume from is of another run, StorageError where the disk is full, UsageError
    where `out` holds something other than a bundle.
    """
    check_replaceable(out, contract.BUNDLE_MANIFEST, "output_dir=")
    if config.model.freeze and (world_size() > 1 or config.training.resume):
        raise UsageError("model.freeze=true: trains in one process and in one go; leave out torchrun and "
                         "training.resume=true")  # fmt: skip
    data = load_prepared(prepared)
    require_checkpoint(config.model)
    folder = out.parent / CHECKPOINTS
    tags = {"data_digest": str(data.manifest["digest"]), "synthetic": str(data.manifest["synthetic"])}
    # Before anything is written: a run that may not go on leaves that of the checkpoints as it is.
    resume_from = resume_point(folder, config, tags["data_digest"]) if config.training.resume else None
    if not is_main():
        _fit(config, data, folder, resume_from, NoTracker())
        wait_for_all()
        return open_bundle(out)
    write_text(out.parent / "config.yaml", to_yaml(config))
    with writing_to(out), track(config, out.parent.name, tags) as tracker:
        if config.model.freeze:
            model, history = _fit_head(config, data)
        else:
            trainer = _fit(config, data, folder, resume_from, tracker)
            model, history = trainer.model, trainer.state.log_history
        write_json(out.parent / "history.json", history)
        bundle = _write(config, data, model, out)
        tracker.log({f"val_{name}": item["value"] for name, item in bundle.manifest.metrics["val"].items()
                     if item["value"] is not None})  # fmt: skip
        tracker.tag(BUNDLE_TAG, bundle.digest)
    wait_for_all()
    return bundle


def _fit_head(config: Config, data: PreparedData) -> tuple[Any, list[dict[str, float]]]:
    """The model of the checkpoint with a new head, and what the choice of it showed."""
    set_seed(config.training.seed)
    model = build_model(config.model)
    require_usable(model, str(config.model.checkpoint))
    if torch.cuda.is_available():
        model = model.cuda()
    history = fit_head(config, data, model)
    return model.cpu(), [history]


def _fit(
    config: Config, data: PreparedData, folder: Path, resume_from: str | None, tracker: Tracker
) -> PneumoniaTrainer:
    """Train to the end; the trainer with the best epoch's weights, the same in every process."""
    trainer = make_trainer(config, data, folder, tracker)
    if is_main():
        if resume_from is None:
            start_anew(folder, config, str(data.manifest["digest"]))
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        print(f"train: {config.model.name}, {parameters:,} parameters, {len(trainer.train_dataset)} images an epoch "
              f"after oversampling{f', {world_size()} processes' if world_size() > 1 else ''}",
              file=sys.stderr)  # fmt: skip
    run(trainer, resume_from)
    return trainer


def run(trainer: PneumoniaTrainer, resume_from: str | None) -> None:
    """Train to the end, or to a checkpoint of the step at which a signal came.

    Raises KeyboardInterrupt after the checkpoint is written.
    """
    stop = StopOnSignal()
    trainer.add_callback(stop)
    try:
        trainer.train(resume_from_checkpoint=resume_from)
    finally:
        stop.restore()
    if stop.requested and trainer.state.global_step < trainer.state.max_steps:
        print(f"train: stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, checkpoint in "
              f"{trainer.args.output_dir}; go on with training.resume=true", file=sys.stderr)  # fmt: skip
        raise KeyboardInterrupt


def _portable(config: Config) -> dict[str, Any]:
    """The configuration without this machine's folders and any password, which a model's users need not know."""
    value = config.to_json()
    for section, key in (("data", "root"), ("data", "raw_dir"), ("data", "prepared_dir"), ("model", "checkpoint")):
        if value[section][key] is not None and Path(value[section][key]).is_absolute():
            value[section][key] = Path(value[section][key]).name
    value["output_dir"] = Path(value["output_dir"]).name
    if config.tracking.uri is not None:
        value["tracking"]["uri"] = shown(config.tracking.uri)
    return value


def _write(config: Config, data: PreparedData, model: Any, out: Path) -> Bundle:
    """Save the weights, calibrate them as saved, and write the bundle."""
    with replace_directory(out.parent / "weights") as folder:
        model.save_pretrained(folder)
        # Not the model at hand: Trainer leaves its forward in mixed precision, and serving computes in float32.
        saved = load_model(folder)
        manifest = _calibrate(config, data, saved)
        saved.save_pretrained(folder)  # type: ignore[operator]
        files = {name: folder / name for name in (contract.WEIGHTS_FILE, contract.MODEL_CONFIG_FILE)}
        return write_bundle(out, manifest, files)


def _calibrate(config: Config, data: PreparedData, model: Any) -> Manifest:
    """Fit temperature, offset and threshold to the validation split; `model` takes the offset into its last bias.

    Returns what the bundle of `model` says.
    """
    rows = data.indices("val")
    labels, patients = data.labels[rows], data.patients[rows]
    logits = predict_logits(model, data, rows, title="validation")
    temperature, offset = fit_temperature_and_offset(logits, labels)
    with torch.no_grad():
        head_of(model).bias[contract.PNEUMONIA] += offset
    logits[:, contract.PNEUMONIA] += offset
    probability = pneumonia_probability(logits, temperature)
    options = {"samples": config.evaluation.bootstrap_samples, "seed": config.evaluation.seed}
    target, most = config.evaluation.recall_target, config.evaluation.max_threshold
    threshold = choose_threshold(labels, probability, patients, target, **options, most=most)
    if why := too_few_to_show(labels, patients, config.evaluation.recall_target):
        print(f"train: {why}", file=sys.stderr, flush=True)
    prevalence = config.evaluation.prevalence
    figures = metrics_with_intervals(labels, probability, threshold, patients, **options, prevalence=prevalence)
    return Manifest(
        name=config.model.name,
        temperature=temperature,
        threshold=threshold,
        sure=config.evaluation.sure,
        recall_target=config.evaluation.recall_target,
        preprocessing=Preprocessing.from_json(data.manifest["preprocessing"]),
        metrics={"val": {name: interval.to_json() for name, interval in figures.items()}},
        data={key: data.manifest[key] for key in _DATA_KEYS},
        config=_portable(config),
        versions={
            "pneumonia": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
        kubeflow_run=os.environ.get(contract.KUBEFLOW_RUN_ENV, ""),
    )
