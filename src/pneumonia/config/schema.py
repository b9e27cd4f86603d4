"""The configuration as frozen, checked dataclasses; nothing below config/compose.py sees another form.

Defaults here are the defaults of the product; conf/*.yaml only says what differs for a data source or an experiment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Optional

from pneumonia import contract
from pneumonia.errors import ConfigError

SOURCES = ("phantom", "folder", "kaggle", "medmnist")
SPLIT_STRATEGIES = ("patient", "stratified", "official")
ARCHITECTURES = ("vit", "vit_conv_stem")
PATIENTS = ("auto", "unknown")
MEDMNIST_SIZES = (28, 224)
PRECISIONS = ("auto", "fp32", "bf16")
SCHEDULERS = ("cosine", "linear", "constant", "constant_with_warmup")
_TRACKING_URI = re.compile(
    r"local|databricks|sqlite:///.+|(postgresql|mysql|mssql)(\+\w+)?://.+|(databricks|azureml)://.+"
    r"|https?://([^/\s]*@)?(\[[\da-fA-F:]+\]|[^/\s:@\[\]]+)(:\d{1,5})?(/\S*)?"
)
_PASSWORD = re.compile(r"^[^/]+//[^/@]*:[^/]*@")
"""user:password@ before a host."""


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value}: not one of {', '.join(allowed)}")


def _between(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{key}={value}: outside {low:g}..{high:g}")


# OmegaConf resolves annotations at run time, and understands Optional[...] on every Python we support.
@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are prepared."""

    source: Optional[str] = None  # noqa: UP045
    """phantom, folder, kaggle or medmnist, each set by `data=` of that name; required by `data fetch`."""
    root: Optional[str] = None  # noqa: UP045
    """Folder of the images, for source=folder."""
    labels: Optional[str] = None  # noqa: UP045
    """Table of labels as it was downloaded, for source=folder: its path, or its name below `root`. Null: labels.csv,
    or folders of the classes."""
    path_column: Optional[str] = None  # noqa: UP045
    """Column of `labels` with an image's path, name, or name without suffix; null: path."""
    label_column: Optional[str] = None  # noqa: UP045
    """Column of `labels` with the label; null: label."""
    positive: Optional[str] = None  # noqa: UP045
    """Values of `label_column` that mean PNEUMONIA, by commas; one of several values parted by | is enough. Null: the
    column says NORMAL and PNEUMONIA, or 0 and 1."""
    negative: Optional[str] = None  # noqa: UP045
    """Values that mean NORMAL, by commas; images of other values are left out. Null: every other value; of numbers 0
    alone, and no empty cell."""
    patient_column: Optional[str] = None  # noqa: UP045
    """Column of `labels` with the patient; null: patient_id, where there is one."""
    only: Optional[str] = None  # noqa: UP045
    """COLUMN=VALUE of the rows of `labels` that count, such as Frontal/Lateral=Frontal; null: all."""
    patients: str = "auto"
    """auto: from `patient_regex`, else labels.csv, else DICOM's PatientID, else the names of the Kaggle set. unknown:
    every image alone."""
    patient_regex: Optional[str] = None  # noqa: UP045
    """Searched in the file name, and where it is not there in the path; its first group is the patient."""
    fraction: float = 1.0
    """Share of the patients of each class that are kept, drawn with `seed` before the split; 0 < fraction <= 1."""
    seed: int = 42
    """Of the phantoms, and of the patients that `fraction` keeps."""
    num_images: int = 2000
    """Images to draw, for source=phantom."""
    medmnist_size: int = 224
    """Side of the images in pixels, 28 or 224, for source=medmnist."""
    medmnist_url: Optional[str] = None  # noqa: UP045
    """A mirror of the .npz file, for source=medmnist; null takes the published address."""
    medmnist_md5: Optional[str] = None  # noqa: UP045
    """MD5 that the file must have, for a file other than the published one; null takes the published MD5."""
    workers: int = 0
    """Decoding processes; 0 means one per core."""
    raw_dir: str = "data/raw"
    """Where `data fetch` puts the images, or its note of where they are."""
    prepared_dir: str = "data/prepared"
    """Where `data prepare` puts pixel cache, index and manifest."""

    def __post_init__(self) -> None:
        if self.source is not None:
            _one_of("data.source", self.source, SOURCES)
        _one_of("data.patients", self.patients, PATIENTS)
        columns = ("path_column", "label_column", "positive", "negative", "patient_column", "only")
        if self.labels is None and (given := [name for name in columns if getattr(self, name) is not None]):
            raise ConfigError(f"data.{given[0]}: names a column or value of data.labels=, which is not given")
        if self.only is not None and "=" not in self.only:
            raise ConfigError(f"data.only={self.only}: expected COLUMN=VALUE")
        if self.root is not None and self.source not in (None, "folder"):
            raise ConfigError(f"data.root={self.root}: has no meaning for data={self.source}; give data=folder")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"data.fraction={self.fraction}: outside 0 < fraction <= 1")
        _between("data.num_images", self.num_images, 40, 1_000_000)
        _between("data.workers", self.workers, 0, 1024)
        if self.medmnist_url is not None and not self.medmnist_url.startswith(("http://", "https://")):
            raise ConfigError(f"data.medmnist_url={self.medmnist_url}: expected http:// or https://")
        if self.medmnist_size not in MEDMNIST_SIZES:
            raise ConfigError(f"data.medmnist_size={self.medmnist_size}: not one of 28, 224")


@dataclass(frozen=True)
class SplitConfig:
    """How images are divided. `patient` keeps all images of a patient on one side."""

    strategy: str = "patient"
    """patient: by patient. stratified: by image, which leaks patients. official: the data set's own parts."""
    train: float = 0.70
    """Share of the images of each class for training."""
    val: float = 0.15
    """Share for validation, on which checkpoint, temperature and threshold are chosen."""
    test: float = 0.15
    """Share for the test figures; the three add up to 1."""
    seed: int = 42
    """Shuffles the patients before they are divided."""
    hold_out: list[str] = field(default_factory=list)
    """Subgroups, as file names tell them (bacteria, virus, IM, NORMAL2), that are tested on and neither trained nor
    validated on: how a model does on images unlike its own. Test images of other subgroups are left unused then."""

    def __post_init__(self) -> None:
        _one_of("split.strategy", self.strategy, SPLIT_STRATEGIES)
        for name in contract.SPLITS:
            _between(f"split.{name}", getattr(self, name), 0.01, 0.98)
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ConfigError(f"split.train + split.val + split.test = {total:g}: they have to add up to 1")


@dataclass(frozen=True)
class ModelConfig:
    """What is trained and, as the mission's configuration has it here, its optimiser's two numbers."""

    name: str = "pneumonia-local"
    """Name of the bundle and of the run's folder."""
    architecture: str = "vit_conv_stem"
    """vit: 16x16 or larger patches, as in Dosovitskiy et al. 2020. vit_conv_stem: 3x3 convolutions instead of one
    large patch projection, as in Xiao et al. 2021 (arXiv:2106.14881)."""
    checkpoint: Optional[str] = None  # noqa: UP045
    """Hub name, folder in Hugging Face format, or bundle to start from; null trains from scratch."""
    checkpoint_mean: Optional[float] = None  # noqa: UP045
    """Mean of pixels in 0..1 that the checkpoint was trained with, if it has no preprocessor_config.json to say so;
    null: ImageNet's. What differs from ImageNet's is folded into the first layer, exactly."""
    checkpoint_std: Optional[float] = None  # noqa: UP045
    """Standard deviation, as `checkpoint_mean`."""
    freeze: bool = False
    """Train a linear head alone, on features of the checkpoint that are computed once for every view of an image."""
    freeze_views: int = 2
    """With `freeze`: random views of every training image, as training.augment draws them."""
    expected_parameters: Optional[int] = None  # noqa: UP045
    """Refuse to train a model whose parameters, in millions, round to another number; null does not check."""
    baseline: str = "pixels"
    """Features of the logistic regression to compare with: pixels, or a ResNet-18 by hub name or folder."""
    patch_size: int = 16
    """Side of a patch in pixels; for vit_conv_stem in pixels after input_pool, a power of two."""
    input_pool: int = 1
    """vit_conv_stem: side of the squares of pixels that are averaged before the first convolution."""
    standardize: bool = False
    """vit_conv_stem: give every image mean 0 and standard deviation 1, so that exposure tells nothing."""
    standardize_margin: float = 0.0
    """Share of each side that those statistics leave out, so that they come from inside the body and no border
    changes them."""
    stem_blocks: list[int] = field(default_factory=list)
    """vit_conv_stem: residual blocks after each of its stride-2 convolutions; empty for none."""
    hidden_size: int = 192
    """Width of the transformer; a multiple of `num_attention_heads`."""
    num_hidden_layers: int = 6
    """Transformer blocks."""
    num_attention_heads: int = 3
    """Attention heads of each block."""
    intermediate_size: int = 576
    """Width of each block's feed-forward layer."""
    hidden_dropout: float = 0.0
    """Dropout after embeddings and layers."""
    attention_dropout: float = 0.0
    """Dropout of attention weights."""
    learning_rate: float = 5e-4
    """Highest learning rate of AdamW."""
    weight_decay: float = 0.05
    """Decoupled weight decay of AdamW."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/\\\x00-\x1f]+", self.name) or self.name in (".", ".."):
            raise ConfigError(f"model.name={self.name!r}: expected a name for a folder, without slashes")
        _one_of("model.architecture", self.architecture, ARCHITECTURES)
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"model.hidden_size={self.hidden_size}: not a multiple of "
                f"model.num_attention_heads={self.num_attention_heads}"
            )
        if contract.IMAGE_SIZE % (self.patch_size if self.architecture == "vit" else self.input_pool):
            raise ConfigError(
                f"model.patch_size={self.patch_size}, model.input_pool={self.input_pool}: do not divide "
                f"{contract.IMAGE_SIZE}"
            )
        if self.architecture == "vit_conv_stem":
            self._check_stem()
        if self.freeze and self.checkpoint is None:
            raise ConfigError("model.freeze=true: needs trained features; name them with model.checkpoint=")
        _between("model.freeze_views", self.freeze_views, 1, 100)
        if self.checkpoint_mean is not None:
            _between("model.checkpoint_mean", self.checkpoint_mean, 0.0, 1.0)
        if self.checkpoint_std is not None:
            _between("model.checkpoint_std", self.checkpoint_std, 0.001, 10.0)
        _between("model.learning_rate", self.learning_rate, 1e-8, 1.0)
        _between("model.weight_decay", self.weight_decay, 0.0, 1.0)

    def _check_stem(self) -> None:
        halvings = self.patch_size.bit_length() - 1
        if self.patch_size != 2**halvings or not 2 <= halvings <= 5:
            raise ConfigError(f"model.patch_size={self.patch_size}: vit_conv_stem takes 4, 8, 16 or 32")
        _between("model.standardize_margin", self.standardize_margin, 0.0, 0.4)
        if self.stem_blocks and len(self.stem_blocks) != halvings:
            raise ConfigError(
                f"model.stem_blocks={self.stem_blocks}: {len(self.stem_blocks)} numbers, expected one for each of the "
                f"{halvings} halvings of model.patch_size={self.patch_size}"
            )


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images only. Widths are of uniform distributions, 0 switches one off."""

    flip_probability: float = 0.5
    """Chance of mirroring left and right."""
    rotate_degrees: float = 8.0
    """Rotation of up to this many degrees either way."""
    scale: float = 0.12
    """Zoom between 1 - scale and 1 + scale, and the aspect ratio by half of that."""
    translate: float = 0.06
    """Shift of up to this share of a side."""
    brightness: float = 0.2
    """Mean between 1 - brightness and 1 + brightness of what it was."""
    contrast: float = 0.3
    """Deviation from the mean between 1 - contrast and 1 + contrast of what it was."""
    gamma: float = 0.3
    """Exposure: x ** exp(u), u in -gamma..gamma."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise, in units of the full pixel range."""
    erase_probability: float = 0.0
    """Chance of one random rectangle of mean grey."""
    crop_area: float = 1.0
    """Random resized crops: an image's least share that is kept, anywhere in it; 1 keeps all."""
    crop_ratio: float = 1.25
    """Aspect ratio of those crops, between 1 / crop_ratio and crop_ratio."""
    border_probability: float = 0.0
    """Chance of borders instead of a crop, each side's width its own, one third black, white and any grey."""
    border_width: float = 0.15
    """Widest border, as a share of that side."""

    def __post_init__(self) -> None:
        for name in ("flip_probability", "erase_probability", "border_probability"):
            _between(f"training.augment.{name}", getattr(self, name), 0.0, 1.0)
        for name in ("scale", "translate", "brightness", "contrast", "gamma", "noise"):
            _between(f"training.augment.{name}", getattr(self, name), 0.0, 0.9)
        _between("training.augment.rotate_degrees", self.rotate_degrees, 0.0, 180.0)
        _between("training.augment.crop_area", self.crop_area, 0.05, 1.0)
        _between("training.augment.crop_ratio", self.crop_ratio, 1.0, 3.0)
        _between("training.augment.border_width", self.border_width, 0.0, 0.4)


@dataclass(frozen=True)
class TrainingConfig:
    """The training run, in the terms of transformers.TrainingArguments where it has one."""

    num_train_epochs: float = 15.0
    """Passes over the training images."""
    per_device_train_batch_size: int = 32
    """Images a step and device."""
    gradient_accumulation_steps: int = 1
    """Batches whose gradients are added up before the weights change."""
    per_device_eval_batch_size: int = 64
    """Images at once where nothing is learned."""
    warmup_ratio: float = 0.1
    """Share of the steps in which the learning rate rises."""
    lr_scheduler_type: str = "cosine"
    """How it falls afterwards: cosine, linear, constant or constant_with_warmup."""
    label_smoothing_factor: float = 0.0
    """Probability taken from the right class and spread over all."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it; 0: as they come."""
    max_steps: int = -1
    """Stops after this many optimiser steps; -1 leaves it to num_train_epochs."""
    oversample: bool = True
    """imbalanced-learn's RandomOverSampler on the training indices, after the split."""
    ema_decay: float = 0.0
    """Moving average of the weights, used for validation and for the bundle; 0 switches it off, .998 is usual."""
    precision: str = "auto"
    """fp32, or bf16 mixed precision; auto takes bf16 where the processor has instructions for it."""
    seed: int = 42
    """Of initial weights, order, augmentation and oversampling."""
    resume: bool = False
    """Go on from the newest checkpoint of the same run directory, of the same data and settings; false removes them."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _one_of("training.precision", self.precision, PRECISIONS)
        _one_of("training.lr_scheduler_type", self.lr_scheduler_type, SCHEDULERS)
        _between("training.num_train_epochs", self.num_train_epochs, 0.001, 10_000)
        _between("training.per_device_train_batch_size", self.per_device_train_batch_size, 1, 4096)
        _between("training.gradient_accumulation_steps", self.gradient_accumulation_steps, 1, 4096)
        _between("training.warmup_ratio", self.warmup_ratio, 0.0, 0.99)
        _between("training.ema_decay", self.ema_decay, 0.0, 0.99999)
        _between("training.label_smoothing_factor", self.label_smoothing_factor, 0.0, 0.5)


@dataclass(frozen=True)
class EvaluationConfig:
    """How figures are made."""

    recall_target: float = 0.95
    """The threshold is the highest whose lower 95 % bound of validation recall meets this."""
    max_threshold: float = 0.5
    """The threshold is at most this: at .5 no image is called NORMAL that is more probably PNEUMONIA."""
    sure: float = 0.8
    """An answer is marked uncertain where neither class is this probable; .5 marks none."""
    bootstrap_samples: int = 2000
    """Resamplings of patients behind each 95 % interval."""
    seed: int = 42
    """Of those resamplings."""
    prevalence: float = 0.1
    """Share of people with pneumonia where the model is to be used, for ppv and npv."""
    worst: int = 0
    """Wrong answers shown in the report as small pictures with their names, which then go where the report goes."""
    stress: bool = True
    """Score the test images also under changes that leave the label as it is: crops, borders, exposure, blur."""
    stress_images: int = 1000
    """At most so many test images for that, drawn with `seed`; there are two dozen changes."""

    def __post_init__(self) -> None:
        _between("evaluation.prevalence", self.prevalence, 0.0001, 0.9999)
        _between("evaluation.max_threshold", self.max_threshold, 0.01, 1.0)
        _between("evaluation.sure", self.sure, 0.5, 1.0)
        _between("evaluation.worst", self.worst, 0, 100)
        _between("evaluation.stress_images", self.stress_images, 20, 1_000_000)
        _between("evaluation.recall_target", self.recall_target, 0.5, 0.999)
        _between("evaluation.bootstrap_samples", self.bootstrap_samples, 100, 100_000)


@dataclass(frozen=True)
class GateConfig:
    """Least figures on test for a model to be exported and published."""

    accuracy: float = 0.90
    """Least accuracy."""
    precision: float = 0.88
    """Least precision, that is positive predictive value on the test images."""
    recall: float = 0.92
    """Least recall, that is sensitivity."""
    f1: float = 0.90
    """Least F1."""
    recall_low: float = 0.90
    """Least lower end of the 95 % interval of recall: a good figure on few patients proves little."""
    specificity: Optional[float] = None  # noqa: UP045
    """Least specificity; null does not ask."""
    auroc: Optional[float] = None  # noqa: UP045
    """Least area under the ROC curve; null does not ask."""
    ece: Optional[float] = None  # noqa: UP045
    """Most expected calibration error; null does not ask."""
    stress_auroc: Optional[float] = None  # noqa: UP045
    """Least AUROC under the worst change of framing (crops, borders, bars); null does not ask. Of drawn images none of
    the three is asked."""
    stress_recall: Optional[float] = None  # noqa: UP045
    """Least recall under the worst change of framing, at the served threshold; null does not ask."""
    stress_specificity: Optional[float] = None  # noqa: UP045
    """Least specificity under the worst change of framing, at the served threshold; null does not ask."""
    champion: Optional[str] = None  # noqa: UP045
    """Folder of the evaluation of the model that is served now, on the same test images; null where there is none."""
    champion_margin: float = 0.02
    """A model is refused unless the lower 95 % end of its recall and of its AUROC, each less the champion's on the same
    images, is above minus this."""

    def __post_init__(self) -> None:
        _between("gate.champion_margin", self.champion_margin, 0.0, 1.0)
        for name in ("specificity", "auroc", "ece", "stress_auroc", "stress_recall", "stress_specificity"):
            if (bound := getattr(self, name)) is not None:
                _between(f"gate.{name}", bound, 0.0, 1.0)
        for name in ("accuracy", "precision", "recall", "f1", "recall_low"):
            _between(f"gate.{name}", getattr(self, name), 0.0, 1.0)


@dataclass(frozen=True)
class ExportConfig:
    """Forms of the model that a bundle carries beside its weights and model.onnx."""

    int8: bool = False
    """Also export model.int8.onnx, parity-gated; where it is there, processors answer and serve with it."""


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow, which gets parameters, figures with their intervals, plots, report and bundle of every run."""

    uri: Optional[str] = "local"  # noqa: UP045
    """local: an SQLite file in output_dir; else a server, such as http://127.0.0.1:8080; null switches it off."""
    experiment: str = "pneumonia"
    """MLflow's experiment."""
    predictions: bool = False
    """Whether MLflow gets predictions.csv too, which holds the names of the test images."""

    def __post_init__(self) -> None:
        if self.uri is not None and not _TRACKING_URI.fullmatch(self.uri):
            # What stands before an @ may be a password.
            raise ConfigError(
                f"tracking.uri={self.uri.rpartition('@')[2]}: no address that MLflow takes; expected local, null, "
                "http://<server>:<port>, sqlite:///<file>, postgresql://, mysql:// or mssql://<server>/<database>, or "
                "databricks"
            )
        if self.uri is not None and _PASSWORD.search(self.uri):
            raise ConfigError(
                "tracking.uri holds a password, which settings, logs and Kubeflow's database would keep; leave it out "
                "and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (of a database, what its driver reads, "
                "such as PGPASSWORD)"
            )


@dataclass(frozen=True)
class Config:
    """Everything a run is made of."""

    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    output_dir: str = contract.TRACKING_DIR
    """Folder that gets one folder a training run."""

    def to_json(self) -> dict[str, Any]:
        """Nested plain dictionaries."""
        from dataclasses import asdict

        return asdict(self)
