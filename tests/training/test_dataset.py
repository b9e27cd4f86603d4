"""Oversampling and augmentation stay inside the training split."""

from __future__ import annotations

import numpy as np
import torch

from pneumonia.config.schema import AugmentConfig
from pneumonia.core.preprocess import Preprocessing, normalize
from pneumonia.data.prepare import PreparedData
from pneumonia.training.dataset import Collator, PixelDataset, training_rows
from pneumonia.training.tracking import NoTracker
from pneumonia.training.train import make_trainer
from tests.phantoms import smoke_config


def test_oversampling_balances_training_and_touches_nothing_else(prepared: PreparedData) -> None:
    rows = training_rows(prepared, oversample=True, seed=1)
    assert set(rows) == set(prepared.indices("train"))
    per_class = np.bincount(prepared.labels[rows])
    assert per_class[0] == per_class[1] == np.bincount(prepared.labels[prepared.indices("train")]).max()
    assert (training_rows(prepared, oversample=False, seed=1) == prepared.indices("train")).all()


def test_the_trainer_validates_on_plain_validation_images_and_never_gets_test_images(prepared: PreparedData) -> None:
    config = smoke_config(prepared.path.parent)
    trainer = make_trainer(config, prepared, prepared.path.parent / "checkpoints", NoTracker())
    test_rows = set(prepared.indices("test").tolist())
    assert not test_rows & set(trainer.train_dataset.rows.tolist())
    # Each validation image once, in order, not a pixel changed.
    assert trainer.eval_dataset.rows.tolist() == prepared.indices("val").tolist()
    batch = next(iter(trainer.get_eval_dataloader()))
    rows = prepared.indices("val")[: len(batch["labels"])]
    plain = normalize(np.asarray(prepared.pixels[rows]), Preprocessing())
    assert torch.equal(batch["pixel_values"].cpu(), torch.from_numpy(plain))
    # And training after a validation is augmented again.
    dataset, collator = trainer.train_dataset, trainer.data_collator
    drawn = collator([dataset[position] for position in range(8)])["pixel_values"]
    assert not np.array_equal(drawn.numpy(), normalize(np.asarray(prepared.pixels[dataset.rows[:8]]), Preprocessing()))


def test_what_a_batch_gets_depends_on_its_places_and_the_seed_alone(prepared: PreparedData) -> None:
    rows = training_rows(prepared, oversample=True, seed=1)
    dataset = PixelDataset(rows)
    items = [dataset[position] for position in (5, 3, 11)]
    first = Collator(prepared, AugmentConfig(), seed=1)(items)["pixel_values"]
    torch.manual_seed(123)
    assert torch.equal(first, Collator(prepared, AugmentConfig(), seed=1)(items)["pixel_values"])
    assert not torch.equal(first, Collator(prepared, AugmentConfig(), seed=2)(items)["pixel_values"])
    assert not torch.equal(first[[1, 0, 2]], Collator(prepared, AugmentConfig(), seed=1)(items[::-1])["pixel_values"])
