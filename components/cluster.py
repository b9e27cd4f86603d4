"""What steps ask of a cluster: GPUs, shared memory, secrets, retries; none of it means anything to a local run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineTask

from components.image import CUDA_IMAGE

GPU = "nvidia.com/gpu"
SHARED_MEMORY = "8Gi"
"""Limit of /dev/shm, through which loader processes and NCCL pass tensors; a pod's own is 64 MiB."""
SECRETS = {
    "pneumonia-kaggle": ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"),
    "pneumonia-s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"),
    "pneumonia-mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
}
"""Keys by secret; each becomes the environment variable of its name. A cluster without one of them runs as well."""


def with_secrets(task: PipelineTask, names: Iterable[str]) -> PipelineTask:
    """The task with the optional secrets `pneumonia-<name>` in its environment."""
    for name in names:
        secret = f"pneumonia-{name}"
        kubernetes.use_secret_as_env(task, secret, {key: key for key in SECRETS[secret]}, optional=True)
    return task


def on_gpu(task: PipelineTask, tolerations: Any, node_selector: Any) -> PipelineTask:
    """The task in the CUDA image on one GPU.

    tolerations, node_selector: the pipeline's parameters of those names; the usual taint of GPU nodes is tolerated
    anyway.
    """
    task.set_container_image(CUDA_IMAGE).set_accelerator_type(GPU).set_accelerator_limit(1)
    kubernetes.add_toleration(task, key=GPU, operator="Exists", effect="NoSchedule")
    kubernetes.add_toleration_json(task, tolerations)
    kubernetes.add_node_selector_json(task, node_selector)
    return with_shared_memory(task)


def with_shared_memory(task: PipelineTask) -> PipelineTask:
    """The task with a /dev/shm of SHARED_MEMORY."""
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=SHARED_MEMORY)
    return task


def with_retries(task: PipelineTask, count: int) -> PipelineTask:
    """The task, tried again where another try can help: a network that comes back, a node that went.

    Not for a step that refuses: it would refuse again. Local runs never try again.
    """
    return task.set_retry(num_retries=count, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
