"""The checkpoints of a run: which run they belong to, and where it goes on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pneumonia.config.schema import Config
from pneumonia.errors import ConfigError, MissingPrerequisite
from pneumonia.files import write_json
from pneumonia.training.processes import is_main, world_size
from pneumonia.training.tracking import flatten

RUN_FILE = "run.json"
"""Beside the checkpoints: what `identity` says of the run that wrote them."""
_MAY_CHANGE = ("model.name", "model.baseline", "model.expected_parameters", "training.resume",
               "training.per_device_eval_batch_size")  # fmt: skip
"""Of the sections model and training, what leaves the weights as they are."""


def identity(config: Config, data_digest: str) -> dict[str, Any]:
    """What a run's weights come from, by dotted key; a run that goes on must have the same.

    The sections data and split are in the digest of what they prepared, as far as training depends on them; evaluation,
    gate, export and tracking come after the weights. The length of training is here, because the learning rate falls
    along all of it, and so is the number of processes, which says how many images a step takes.
    """
    value = config.to_json()
    settings = flatten({"model": value["model"], "training": value["training"]})
    kept = {key: setting for key, setting in settings.items() if key not in _MAY_CHANGE}
    return {"data.digest": data_digest, "processes": world_size(), **kept}


def start_anew(folder: Path, config: Config, data_digest: str) -> None:
    """Remove what an earlier run left under `folder`, and note there which run the next checkpoints belong to."""
    # In this order a run that is killed here leaves no checkpoint under the name of another run.
    (folder / RUN_FILE).unlink(missing_ok=True)
    for old in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(old)
    write_json(folder / RUN_FILE, identity(config, data_digest))


def resume_point(folder: Path, config: Config, data_digest: str) -> str:
    """The newest checkpoint under `folder` that was written to its end.

    Raises MissingPrerequisite where there is none, ConfigError, naming every key, where the run that wrote it had
    other data or settings.
    """
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_complete(path)]
    last = max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    if last is None:
        raise MissingPrerequisite(
            f"training.resume=true: no checkpoint under {folder} that was written to its end; start without it, or "
            "give the output_dir of the run"
        )
    _check_same_run(folder, identity(config, data_digest))
    if is_main():
        print(f"train: going on from {last.name}", file=sys.stderr)
    return str(last)


def _check_same_run(folder: Path, now: dict[str, Any]) -> None:
    try:
        then = dict(json.loads((folder / RUN_FILE).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"training.resume=true: {folder} does not say with which data and settings its checkpoints were trained "
            f"(no readable {RUN_FILE}; older versions wrote none); start without training.resume"
        ) from error
    differing = [
        f"{key} was {then.get(key, 'absent')} and is {now.get(key, 'absent')}"
        for key in dict.fromkeys([*then, *now])
        if then.get(key) != now.get(key)
    ]
    if differing:
        raise ConfigError(
            f"training.resume=true: the checkpoints under {folder} are of another run: {'; '.join(differing)}. Give "
            "the data and settings of that run, or start without training.resume, which removes its checkpoints"
        )


def _is_complete(checkpoint: Path) -> bool:
    """Whether Trainer got to the state, which it writes last; a run that was killed may leave a checkpoint without."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return True
