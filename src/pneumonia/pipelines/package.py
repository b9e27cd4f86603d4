"""A compiled pipeline before it goes to Kubeflow: its images, its parameters, and what would only fail there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pneumonia import __version__
from pneumonia.errors import BadInput, UsageError
from pneumonia.files import write_text
from pneumonia.pipelines.checks import VOLUMES, refuse_before_submission
from pneumonia.pipelines.run import compiled_pipeline

IMAGES = {"image": f"pneumonia-step:{__version__}", "cuda_image": f"pneumonia-step-cuda:{__version__}"}
"""What the packaged pipelines call the two step images."""
HOUR_S = 3600


def compile_pipeline(name: str, out: Path, **images: str | None) -> Path:
    """Write the compiled pipeline `name` to `out` with other step images; returns `out`.

    images: `image` and `cuda_image`, as a cluster finds them: registry, name, tag or digest; None keeps the name.
    """
    text = compiled_pipeline(name).read_text("utf-8")
    for key, known in IMAGES.items():
        if images.get(key):
            text = text.replace(known, str(images[key]))
    write_text(out, text)
    return out


def adapt(package: Path, arguments: Mapping[str, Any], out: Path, run_hours: float | None = None) -> Path:
    """`package` with the claims that `arguments` name mounted in the tasks that use them, written to `out`.

    A mount cannot depend on a parameter: Kubeflow's driver refuses one without a name. The parameters' defaults become
    the claims, so that the file says what it mounts. run_hours: most time of a run, in place of the file's own. What
    needs neither stays as it is. Returns the file to submit. Raises UsageError for a time that is none.
    """
    import yaml

    wanted = {name: str(arguments[name]) for name in VOLUMES if arguments.get(name)}
    spec, *platforms = _documents(package)
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    volumes = [name for name in wanted if name in known]
    if run_hours is not None and not run_hours * HOUR_S >= 1:
        raise UsageError(f"--run-hours {run_hours:g}: expected a time above zero, such as 12 or 0.5")
    if not volumes and run_hours is None:
        return package
    platform = platforms[0] if platforms else {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {}}}}}
    asked = platform["platforms"]["kubernetes"]
    if run_hours is not None:
        asked.setdefault("pipelineConfig", {})["activeDeadlineSeconds"] = int(run_hours * HOUR_S)
    for name in volumes:
        known[name]["defaultValue"] = wanted[name]
        for task in VOLUMES[name][0]:
            _mount(asked["deploymentSpec"]["executors"].setdefault(f"exec-{task}", {}), wanted[name], VOLUMES[name][1])
    write_text(out, yaml.safe_dump_all([spec, platform], sort_keys=True))
    return out


def _mount(executor: dict[str, Any], claim: str, where: str) -> None:
    mounts = executor.setdefault("pvcMount", [])
    mounts[:] = [mount for mount in mounts if mount["mountPath"] != where]
    given = {"pvcNameParameter": {"runtimeValue": {"constant": claim}}, "constant": claim}
    mounts.append({"mountPath": where, **given})


def check_arguments(package: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` with values of the types that the pipeline's parameters have.

    Raises UsageError for a parameter that it does not have, one that it needs, and a value of another type.
    """
    known = _document(package)["root"].get("inputDefinitions", {}).get("parameters", {})
    needed = {name for name, item in known.items() if not item.keys() & {"defaultValue", "isOptional"}}
    missing = sorted(needed - arguments.keys())
    if missing:
        raise UsageError(f"{package.name} needs {', '.join(missing)}; give them as NAME=VALUE")
    checked: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in known:
            raise UsageError(f"{name}: {package.name} has no such parameter; it has {', '.join(sorted(known))}")
        kind = known[name]["parameterType"]
        try:
            checked[name] = value if kind == "STRING" or not isinstance(value, str) else json.loads(value)
        except ValueError as error:
            raise UsageError(f"{name}={value}: expected {_KINDS[kind][1]}") from error
        if not isinstance(checked[name], _KINDS[kind][0]) or isinstance(checked[name], bool) != (kind == "BOOLEAN"):
            raise UsageError(f"{name}={value}: expected {_KINDS[kind][1]}")
    return checked


_KINDS: dict[str, tuple[Any, str]] = {
    "STRING": (str, "text"),
    "NUMBER_INTEGER": (int, "a whole number"),
    "NUMBER_DOUBLE": ((int, float), "a number"),
    "BOOLEAN": (bool, "true or false"),
    "LIST": (list, 'a JSON list such as ["training.max_steps=4"]'),
    "STRUCT": (dict, 'a JSON object such as {"key": "value"}'),
}


def check_submission(package: Path, arguments: Mapping[str, Any], *, images_on_nodes: bool = False) -> None:
    """Refuse what would wait for ever or fail at the end of a run.

    arguments: as check_arguments returns them. images_on_nodes: whether the nodes have images that no registry names.
    Raises UsageError for such an image, and for what refuse_before_submission refuses.
    """
    spec = _document(package)
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    defaults = {name: item["defaultValue"] for name, item in known.items() if "defaultValue" in item}
    parameters = {**defaults, **arguments}
    refuse_before_submission(parameters)
    homeless = sorted(image for image in _images(spec, parameters) if not _has_registry(image))
    if homeless and not images_on_nodes:
        raise UsageError(
            f"{', '.join(homeless)}: no registry in the name, so nodes look for it on Docker Hub and wait for ever; "
            "give --image (with GPUs --cuda-image) as REGISTRY/NAME:TAG, or --images-on-nodes where all nodes have it"
        )


def _images(spec: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterator[str]:
    """Images that this run pulls. Those with CUDA are pulled where there are GPUs only."""
    executors = spec.get("deploymentSpec", {}).get("executors", {}).values()
    found = {item["container"]["image"] for item in executors if "container" in item}
    found |= {str(value) for name, value in parameters.items() if name == "image" or name.endswith("_image")}
    on_gpu = bool(parameters.get("gpus") or parameters.get("tensorrt"))
    for image in found - {""}:
        if "{{" not in image and (on_gpu or "cuda" not in image):
            yield image


def _has_registry(image: str) -> bool:
    """As container runtimes tell a registry from a user's name: a dot, a port, or localhost."""
    first, slash, _ = image.partition("/")
    return bool(slash) and (first == "localhost" or "." in first or ":" in first)


def _document(package: Path) -> dict[str, Any]:
    return _documents(package)[0]


def _documents(package: Path) -> list[dict[str, Any]]:
    """The pipeline itself, and what it asks of Kubernetes where it asks."""
    import yaml

    try:
        documents = list(yaml.safe_load_all(package.read_text("utf-8")))
        documents[0]["root"].get("inputDefinitions", {}).get("parameters", {})
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadInput(
            f"{package}: not a compiled pipeline ({error!r}); make one with `pneumoctl pipeline compile`"
        ) from error
    return documents
