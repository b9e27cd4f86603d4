"""Steps in containers: what a run's containers get of this machine, and how their end is known.

kfp.local's DockerRunner lets Docker remove a container at its end and then takes one that is gone for a success; it
also mounts the run's folder alone. `follow` replaces the part of it that starts a container.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumonia import __version__, contract
from pneumonia.errors import DependencyMissing, MissingPrerequisite
from pneumonia.pipelines.step import ERROR_DIR_ENV

STEP_IMAGE_ENV = "PNEUMONIA_STEP_IMAGE"
_STEP_IMAGES = {
    f"pneumonia-step:{__version__}": STEP_IMAGE_ENV,
    f"pneumonia-step-cuda:{__version__}": "PNEUMONIA_STEP_IMAGE_CUDA",
}
"""Images as the packaged pipeline names them, and the variables that name others."""
RUN_LABEL = "pneumonia.run"
SHARED_MEMORY = "2g"
"""Size of /dev/shm, through which loader processes pass tensors; a container's own is 64 MiB."""
_HANDED_ON = ("AWS_", "HF_", "HUGGING_FACE_", "KAGGLE_", "MLFLOW_", "OMP_", "PNEUMONIA_")
"""Credentials and settings of these prefixes reach the steps, which a cluster gives them as secrets."""


def step_image(image: str = f"pneumonia-step:{__version__}") -> str:
    """What stands for an image of the compiled pipeline: the one of PNEUMONIA_STEP_IMAGE[_CUDA], or itself."""
    return os.environ.get(_STEP_IMAGES.get(image, "")) or image


def chosen_image(image: str, command: Sequence[str]) -> str:
    """The image of a step whose pipeline names an output of another step instead, which kfp.local leaves as it is.

    command: the step's, which holds its inputs as JSON.
    """
    named = re.fullmatch(r"\{\{\$\.inputs\.parameters\['(.+)'\]\}\}", image)
    if named is None:
        return image
    inputs = json.loads(command[list(command).index("--executor_input") + 1])["inputs"]
    return str(inputs["parameterValues"][named[1]])


def require_docker(image: str) -> None:
    """Raise MissingPrerequisite without a daemon or the image, DependencyMissing without Docker's Python client."""
    try:
        import docker
    except ModuleNotFoundError as error:
        raise DependencyMissing("docker is not installed; pip install 'pneumonia[pipelines]'") from error
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        raise MissingPrerequisite(
            f"no Docker daemon answers ({_line(error)}); start one, or use --engine subprocess"
        ) from error
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound as error:
        raise MissingPrerequisite(
            f"image {image} is not on this machine; build it with `make images`, or name another in {STEP_IMAGE_ENV}"
        ) from error
    finally:
        client.close()


def run_options(request: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `docker.containers.run` for every step of a run.

    Steps are this user, so that what they write belongs to it; they share this machine's network, so that an address
    means the same under both engines, and see paths that the run's arguments name under the same names.
    """
    from docker.types import DeviceRequest, Mount

    arguments = request["arguments"]
    paths = _paths(arguments)
    if request["cache"]:
        paths[str(Path(request["root"]).parent)] = True
    mounts = [Mount(path, path, "bind", read_only=read_only) for path, read_only in sorted(paths.items())]
    gpu = int(arguments.get("gpus", 0)) > 0 or bool(arguments.get("tensorrt"))
    return {
        "user": f"{os.getuid()}:{os.getgid()}",
        "network_mode": "host",
        "shm_size": SHARED_MEMORY,
        "mounts": mounts,
        "labels": {RUN_LABEL: Path(request["root"]).name},
        "security_opt": ["no-new-privileges"],
        "cap_drop": ["ALL"],
        "environment": _environment(),
        # Not run on a GPU.
        **({"device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])]} if gpu else {}),
    }


def _paths(arguments: Mapping[str, Any]) -> dict[str, bool]:
    """Folders of this machine that steps need, and whether they only read them."""
    named = [str(arguments.get("data_root") or "")]
    named += [str(override).partition("=")[2] for override in arguments.get("overrides", ())]
    paths = {path: True for path in named if os.path.isabs(path) and Path(path).exists()}
    written = [os.environ[ERROR_DIR_ENV]]
    root = str(arguments.get("release_root") or "")
    written += [root] if os.path.isabs(root) else []
    written += [os.environ[contract.TRACKING_DIR_ENV]] if arguments.get("tracking_uri", "") in ("", "local") else []
    for path in written:
        # Docker would make a missing one, and root would own it.
        Path(path).mkdir(parents=True, exist_ok=True)
        paths[path] = False
    return paths


def _environment() -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if name.startswith(_HANDED_ON)}
    return {**given, "HOME": "/tmp", "PYTHONUNBUFFERED": "1"}


def follow(client: Any, image: str, command: Sequence[str], volumes: Mapping[str, Any], **options: Any) -> int:
    """Run one step in a container, print what it says line by line, and return its exit status.

    Takes the place of `kfp.local.docker_task_handler.run_docker_container`. The container is removed at the end,
    whatever ends it.
    """
    container = client.containers.create(
        image=step_image(chosen_image(image, command)), command=list(command), volumes=dict(volumes), **options
    )
    try:
        container.start()
        for line in _lines(container.logs(stream=True, follow=True)):
            print(line)
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True, v=True)


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Docker gives what was written in pieces of any size."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode("utf-8", "replace").rstrip("\r") for line in whole)
    if rest:
        yield rest.decode("utf-8", "replace")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def stop_containers(run: Path) -> None:
    """Remove what is left of a run whose engine was ended before it could; without Docker there is nothing."""
    try:
        import docker

        client = docker.from_env()
        for container in client.containers.list(all=True, filters={"label": f"{RUN_LABEL}={run.name}"}):
            container.remove(force=True, v=True)
            print(f"pipeline: removed container {container.short_id}", file=sys.stderr)
    except Exception as error:
        print(f"pipeline: containers of {run.name} may be left ({_line(error)})", file=sys.stderr)
