"""The compiled pipeline is the wiring, the packaged copy is the compiled one, and the gate holds what is after it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pneumonia import __version__
from pneumonia.errors import ConfigError, UsageError
from pneumonia.pipelines.run import compiled_pipeline
from pneumonia.pipelines.step import PARAMETERS, check_release, settings_of

ROOT = Path(__file__).resolve().parents[2]
STEPS = (
    "baseline", "build-tensorrt", "confirm", "deploy", "evaluate", "export-int8", "export-onnx", "fetch", "gate",
    "notify", "parity", "prepare", "publish", "train", "train-distributed",
)  # fmt: skip
PIPELINES = ("train", "score")
SCORING = ("list-shards", "merge-scores", "notify", "score-shard")

# What a cluster gives each executor beyond an image: GPUs, /dev/shm, optional secrets, a shared volume.
GPU, KAGGLE, S3, MLFLOW, VOLUME = "gpu", "pneumonia-kaggle", "pneumonia-s3", "pneumonia-mlflow", "/workspace"
RELEASES = "/release-volume"
CLUSTER = {
    "build-tensorrt": {GPU},
    "deploy": {S3, MLFLOW},
    "evaluate": {S3, MLFLOW},
    "export-onnx": {S3, MLFLOW},
    "fetch": {KAGGLE},
    "parity-2": {GPU},
    "publish": {S3, MLFLOW},
    "publish-2": {S3, MLFLOW, RELEASES},
    "train": {S3, MLFLOW},
    "train-2": {GPU, S3, MLFLOW},
    "train-distributed": {S3, MLFLOW, VOLUME},
    "train-distributed-2": {S3, MLFLOW, VOLUME},
}
RETRIES = {"fetch": 3, "publish": 3, "publish-2": 3, "deploy": 2}
UNCACHED = {"fetch", "prepare", "gate", "publish", "publish-2", "deploy", "confirm", "notify"}


def documents(name: str) -> list[dict[str, Any]]:
    """The compiled pipeline, parsed: what runs, and what it asks of Kubernetes."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; pip install 'pneumonia[pipelines]'")
    return list(yaml.safe_load_all(compiled_pipeline(name).read_text("utf-8")))


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    """The pipeline of training."""
    return documents("train")[0]


def all_tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every task that runs something, in whatever branch, by its name."""
    dags = [component["dag"] for component in (spec["root"], *spec["components"].values()) if "dag" in component]
    runs = {name for name, component in spec["components"].items() if "executorLabel" in component}
    return {name: task for dag in dags for name, task in dag["tasks"].items() if task["componentRef"]["name"] in runs}


def recompiled(tmp_path: Path, name: str = "train", **environment: str) -> str:
    """What pipelines/<name>.py compiles to now; compiled in a copy, so that the checkout stays as it is."""
    pytest.importorskip("kfp", reason="kfp is not installed; pip install 'pneumonia[pipelines]'")
    code = (
        f"import sys; sys.path.insert(0, sys.argv[1]); from pipelines.{name} import {name}_pipeline\n"
        f"from kfp import compiler; compiler.Compiler().compile({name}_pipeline, sys.argv[2])"
    )
    out = tmp_path / "compiled.yaml"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PNEUMONIA_STEP_IMAGE")}
    subprocess.run([sys.executable, "-c", code, str(ROOT), str(out)], env={**clean, **environment}, check=True)
    return out.read_text("utf-8")


@pytest.mark.parametrize("name", PIPELINES)
def test_compiled_file_is_up_to_date(name: str, tmp_path: Path) -> None:
    committed = (ROOT / "pipelines" / f"{name}.yaml").read_text("utf-8")
    # Another hash seed each time: an order that depends on it would differ from run to run.
    for seed in ("1", "2"):
        assert recompiled(tmp_path, name, PYTHONHASHSEED=seed) == committed, f"run `make generate`, commit {name}.yaml"


def test_images_are_named_in_one_place(tmp_path: Path) -> None:
    names = {
        "PNEUMONIA_STEP_IMAGE": "registry.example/step@sha256:0",
        "PNEUMONIA_STEP_IMAGE_CUDA": "registry.example/g",
    }
    text = recompiled(tmp_path, **names)
    assert set(re.findall(r"^ +image: (.+)", text, re.MULTILINE)) == set(names.values())


def test_nothing_is_installed_when_a_step_starts(spec: dict[str, Any]) -> None:
    assert "pip install" not in str(spec)


def producer(task: dict[str, Any], name: str) -> str:
    """The task whose output a task takes as its input artifact `name`."""
    return str(task["inputs"]["artifacts"][name]["taskOutputArtifact"]["producerTask"])


def test_everything_after_the_gate_waits_for_its_verdict(spec: dict[str, Any]) -> None:
    body = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    tasks = all_tasks(spec)
    assert {re.sub(r"-\d+$", "", name) for name in tasks} == set(STEPS)
    assert producer(body["export-onnx"], "verdict") == "gate"
    assert producer(body["export-int8"], "bundle") == "export-onnx"
    checks = body["condition-branches-8"]
    assert producer(checks, "pipelinechannel--export-int8-quantized") == "export-int8"
    checked = "pipelinechannel--condition-branches-8-pipelinechannel--condition-branches-8-oneof-1"
    assert producer(body["condition-branches-11"], checked) == "condition-branches-8"
    (deploying,) = [task for task in body.values() if task["componentRef"]["name"] == "comp-condition-14"]
    published = "pipelinechannel--condition-branches-11-pipelinechannel--condition-branches-11-oneof-1"
    assert producer(deploying, published) == "condition-branches-11"
    to_volume = tasks["publish-2"]["inputs"]["parameters"]
    assert to_volume["release_root"] == {"runtimeValue": {"constant": RELEASES}}
    assert str(to_volume["release_volume"]["componentInputParameter"]).endswith("release_volume")


def test_what_the_cache_cannot_see_is_never_cached(spec: dict[str, Any]) -> None:
    cached = {name: task["cachingOptions"].get("enableCache", False) for name, task in all_tasks(spec).items()}
    assert {name for name in cached if not cached[name]} == UNCACHED


def test_cache_key_of_every_step_has_library_version_and_of_those_with_data_its_digest(spec: dict[str, Any]) -> None:
    for name, task in all_tasks(spec).items():
        given = task["inputs"]["parameters"]
        assert str(given["library_version"]["componentInputParameter"]).endswith("library_version"), name
        if "prepared" in task["inputs"].get("artifacts", {}):
            digest = given["data_digest"]
            assert "prepare-Output" in str(digest) or digest["taskOutputParameter"]["producerTask"] == "prepare", name
    assert spec["root"]["inputDefinitions"]["parameters"]["library_version"]["defaultValue"] == __version__


def test_each_executor_asks_the_cluster_for_what_its_step_needs() -> None:
    spec, platform = documents("train")
    executors = spec["deploymentSpec"]["executors"]
    asked = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert asked.keys() <= executors.keys()
    for label, executor in executors.items():
        name, own = label.removeprefix("exec-"), asked.get(label, {})
        needs = CLUSTER.get(name, set())
        gpus = executor["container"].get("resources", {}).get("accelerator", {})
        cuda = executor["container"]["image"].startswith("pneumonia-step-cuda:")
        assert (
            cuda
            == (gpus.get("resourceType") == "nvidia.com/gpu")
            == (gpus.get("resourceCount") == "1")
            == (GPU in needs)
        ), name
        memory = [(item["mountPath"], item["medium"]) for item in own.get("emptyDirMounts", [])]
        assert memory == ([("/dev/shm", "Memory")] if GPU in needs else []), name
        places = [key in own for key in ("tolerations", "nodeSelector")]
        assert places == [GPU in needs] * 2, name
        secrets = {item["secretName"] for item in own.get("secretAsEnv", [])}
        assert secrets == needs & {KAGGLE, S3, MLFLOW}, name
        assert all(item["optional"] for item in own.get("secretAsEnv", [])), name
        assert {item["mountPath"] for item in own.get("pvcMount", [])} == needs & {VOLUME, RELEASES}, name


def test_only_steps_that_another_try_can_help_are_tried_again(spec: dict[str, Any]) -> None:
    tasks = all_tasks(spec)
    retries = {name: task["retryPolicy"]["maxRetryCount"] for name, task in tasks.items() if "retryPolicy" in task}
    assert retries == RETRIES


def test_a_cpu_alone_trains_without_asking_for_a_gpu(spec: dict[str, Any]) -> None:
    branches = spec["components"]["comp-condition-branches-2"]["dag"]["tasks"]
    condition = next(task for task in branches.values() if task["componentRef"]["name"] == "comp-condition-3")
    assert condition["triggerPolicy"]["condition"] == "int(inputs.parameter_values['pipelinechannel--gpus']) == 0"
    assert set(spec["components"]["comp-condition-3"]["dag"]["tasks"]) == {"train"}


def test_the_parameters_of_thresholds_say_what_the_configuration_says(spec: dict[str, Any]) -> None:
    from pneumonia.config.compose import compose

    defaults = {name: item.get("defaultValue") for name, item in spec["root"]["inputDefinitions"]["parameters"].items()}
    for experiment in ("local", "smoke", "vit_base", "dinov2_small"):
        config = compose([f"experiment={experiment}"]).to_json()
        for key, name in PARAMETERS.items():
            if "." in key and key != "data.root":
                section, item = key.split(".")
                assert defaults[name] == config[section][item], f"{key} of experiment={experiment}"


def test_components_are_a_signature_over_one_call() -> None:
    import ast

    files = sorted((ROOT / "components").glob("*/component.py"))
    assert {file.parent.name.replace("_", "-") for file in files} == {*STEPS, *SCORING}
    for file in files:
        assert (file.parent / "README.md").is_file(), file.parent
        (function,) = [node for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
        assert ast.get_docstring(function), file
        statements = [node for node in ast.walk(ast.Module(function.body[1:], [])) if isinstance(node, ast.stmt)]
        assert len(statements) <= 10, f"{file}: {len(statements)} statements; put the logic into the library"


def test_parameters_become_settings() -> None:
    assert settings_of("local", "folder", "/x", ["training.max_steps=1"]) == [
        "experiment=local",
        "data=folder",
        "data.root=/x",
        "training.max_steps=1",
    ]
    assert settings_of("smoke", "phantom", "", [], gate_recall=0.5, gpus=0) == [
        "experiment=smoke",
        "data=phantom",
        "gate.recall=0.5",
    ]


@pytest.mark.parametrize("override", ["experiment=smoke", "data=folder", "data.root=/y", "gate.recall=0"])
def test_an_override_cannot_contradict_a_parameter(override: str) -> None:
    with pytest.raises(ConfigError, match="parameter"):
        settings_of("local", "folder", "/x", [override])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"backend": "onnx"}, "backend=onnx: not one of auto, python, onnxruntime, tensorrt"),
        ({"backend": "tensorrt"}, "only tensorrt=true builds"),
        ({"release_root": "/data"}, "release_root=/data: a folder of one step"),
    ],
)
def test_a_release_that_could_not_be_served_is_refused_before_any_work(changed: dict[str, str], words: str) -> None:
    fine: dict[str, Any] = {"backend": "auto", "tensorrt": False, "deploy": True, "release_root": "s3://b"}
    check_release(**fine, release_volume="")
    check_release(**fine | {"release_root": "/data", "deploy": False}, release_volume="")
    check_release(**fine | {"release_root": "/data"}, release_volume="claim")
    check_release(**fine | {"backend": "tensorrt", "tensorrt": True}, release_volume="")
    with pytest.raises(UsageError, match=words):
        check_release(**fine | changed, release_volume="")


def test_nodes_without_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match="gpus of each node"):
        settings_of("local", "phantom", "", [], num_nodes=2, gpus=0)


def test_the_readme_of_every_component_is_generated_from_it(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "tools" / "component_docs.py"), str(tmp_path)], check=True)
    for page in sorted((tmp_path / "components").rglob("README.md")):
        committed = (ROOT / page.relative_to(tmp_path)).read_text("utf-8")
        assert page.read_text("utf-8") == committed, "run `make generate` and commit components/"


def test_shards_run_side_by_side_on_the_volume_of_the_images() -> None:
    spec, platform = documents("score")
    assert set(all_tasks(spec)) == set(SCORING)
    (loop,) = [
        task for component in spec["components"].values() for task in component.get("dag", {}).get("tasks", {}).values()
        if "parameterIterator" in task
    ]  # fmt: skip
    assert "list-shards" in str(loop["parameterIterator"]["items"])
    asked = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {name: [item["mountPath"] for item in own["pvcMount"]] for name, own in asked.items()} == {
        "exec-list-shards": ["/images"],
        "exec-score-shard": ["/images"],
    }
    tasks = all_tasks(spec)
    assert tasks["score-shard"]["retryPolicy"]["maxRetryCount"] == 2
    assert not any(task["cachingOptions"].get("enableCache") for task in tasks.values())
