"""What a run of the training pipeline is refused for, before it is submitted and again in its first step."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pneumonia.errors import UsageError

AUTO = "auto"
"""Backend of a release: tensorrt where the bundle has an engine, python elsewhere."""
UNREADABLE = (
    "a folder of one step, which no server of the cluster can read; run the pipeline with "
    "release_root=s3://<bucket>/<path> or release_volume=<PersistentVolumeClaim>, or with deploy=false"
)
VOLUMES = {
    "data_volume": (("check", "fetch", "prepare", "deploy"), "/data", False),
    "training_volume": (("check", "train"), "/workspace", True),
    "release_volume": (("check", "publish"), "/release-volume", True),
}
"""Parameters that name a PersistentVolumeClaim: tasks that mount it, where, and whether they write."""
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")


def refuse_before_submission(parameters: Mapping[str, Any]) -> None:
    """Raises UsageError for parameters, defaults among them, with which no run of the training pipeline ends well."""
    if parameters.get("source") == "phantom" and parameters.get("deploy") is True:
        raise UsageError(
            "source=phantom with deploy=true: servers refuse a model of drawn images; give deploy=false, or real "
            "X-rays with source=folder, kaggle or medmnist"
        )
    num_nodes, gpus = int(parameters.get("num_nodes", 1)), int(parameters.get("gpus", 0))
    if num_nodes < 1 or gpus < 0 or (num_nodes > 1 and gpus == 0):
        raise UsageError(
            f"num_nodes={num_nodes}, gpus={gpus}: expected num_nodes from 1 and gpus from 0 up, and gpus of each node "
            "where there are several nodes"
        )
    for name, value in parameters.items():
        if name.endswith(("_request", "_limit")) and not _QUANTITY.fullmatch(str(value)):
            raise UsageError(f"{name}={value}: not a quantity of Kubernetes; expected such as 500m, 2 or 4Gi")
    if parameters.keys() >= {"backend", "tensorrt", "deploy", "release_root", "release_volume"}:
        _check_release(**{name: parameters[name] for name in ("backend", "tensorrt", "deploy", "release_root")},
                       release_volume=parameters["release_volume"])  # fmt: skip


def _check_release(backend: str, tensorrt: bool, deploy: bool, release_root: str, release_volume: str) -> None:
    from pneumonia.triton.repository import BACKENDS

    if backend not in (AUTO, *BACKENDS):
        raise UsageError(f"backend={backend}: not one of {', '.join((AUTO, *BACKENDS))}")
    if backend == "tensorrt" and not tensorrt:
        raise UsageError("backend=tensorrt: serves an engine, which only tensorrt=true builds; set it, or backend=auto")
    if deploy and not release_volume and "://" not in release_root:
        raise UsageError(f"release_root={release_root}: {UNREADABLE}")
