"""What steps ask of a cluster: GPUs, shared memory, secrets, CPU, memory, time; a local run takes none of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineTask

from pneumonia.contract import KUBEFLOW_RUN_ENV

GPU = "nvidia.com/gpu"
SHARED_MEMORY = "8Gi"
"""Limit of /dev/shm, through which loader processes and NCCL pass tensors; a pod's own is 64 MiB."""
SECRETS = "/var/run/secrets/pneumonia"
"""Where pneumonia.pipelines.step looks for secrets."""
SMALL = ("100m", "1", "256Mi", "2Gi")
"""CPU and memory of steps that only ask others: request and limit of each."""
HOUR_S = 3600
STEP_S, TRAINING_S = 6 * HOUR_S, 72 * HOUR_S
"""Most time of a step's pod, the wait for its image included; a constant, because Kubeflow takes no parameter there."""
RUN_S = 96 * HOUR_S
"""Most time of a run, waits for nodes and drivers included; `--run-hours` of `pneumoctl pipeline` sets another."""


def with_secrets(task: PipelineTask, names: Iterable[str]) -> PipelineTask:
    """The task with the optional secrets `pneumonia-<name>` as files, of which the step makes its own environment.

    Not in the container's environment, which Kubeflow's launcher shares: it would take the product's keys for its own.
    """
    for name in names:
        kubernetes.use_secret_as_volume(task, f"pneumonia-{name}", f"{SECRETS}/{name}", optional=True)
    return task


def with_run(task: PipelineTask) -> PipelineTask:
    """The task, whose process knows the run's id: from a label of its pod, since inputs are part of the cache's key."""
    return kubernetes.use_field_path_as_env(task, KUBEFLOW_RUN_ENV, "metadata.labels['pipeline/runid']")


def at_place(task: PipelineTask, image: Any, gpus: Any, tolerations: Any, node_selector: Any) -> PipelineTask:
    """The task in an image and with GPUs that the step `check` names while the pipeline runs; gpus: "" for none."""
    task.set_container_image(image).set_accelerator_type(GPU).set_accelerator_limit(gpus)
    kubernetes.add_toleration_json(task, tolerations)
    kubernetes.add_node_selector_json(task, node_selector)
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=SHARED_MEMORY)
    return task


def with_resources(
    task: PipelineTask, cpu_request: Any, cpu_limit: Any, memory_request: Any, memory_limit: Any, seconds: int = STEP_S
) -> PipelineTask:
    """The task with CPU and memory, and the most time of its pod.

    A parameter has to be an input of some task of the same graph too: kfp 2.17 does not hand one that only resources
    name down into a nested graph, such as that of the exit handler.
    """
    task.set_cpu_request(cpu_request).set_cpu_limit(cpu_limit)
    kubernetes.set_timeout(task, seconds)
    return task.set_memory_request(memory_request).set_memory_limit(memory_limit)
