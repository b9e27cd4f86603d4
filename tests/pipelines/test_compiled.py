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
from pneumonia.errors import ConfigError
from pneumonia.pipelines.run import compiled_pipeline
from pneumonia.pipelines.settings import overrides_of, write_settings

ROOT = Path(__file__).resolve().parents[2]
STEPS = (
    "check", "confirm", "deploy", "evaluate", "export", "fetch", "gate", "notify", "prepare", "publish", "train",
)  # fmt: skip
PIPELINES = ("train", "score")
SCORING = ("list-shards", "merge-scores", "notify", "score-shard")

# What a cluster gives each executor beyond an image: a place that `check` names, and optional secrets.
PLACED, KAGGLE, S3, MLFLOW, SETTINGS = "placed", "kaggle", "s3", "mlflow", "settings"
CLUSTER = {
    "check": {KAGGLE, S3, MLFLOW, SETTINGS},
    "deploy": {S3, MLFLOW},
    "evaluate": {S3, MLFLOW, SETTINGS},
    "export": {PLACED, S3, MLFLOW},
    "fetch": {KAGGLE, SETTINGS},
    "prepare": {SETTINGS},
    "publish": {S3, MLFLOW},
    "train": {PLACED, S3, MLFLOW, SETTINGS},
}
UNCACHED = {"check", "gate", "publish", "deploy", "confirm", "notify"}
MOST_PODS = 22


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
    images = set(re.findall(r"^ +image: ([^'\n]+)$", text, re.MULTILINE))
    assert images == {names["PNEUMONIA_STEP_IMAGE"]}
    for name, image in (("cpu_image", names["PNEUMONIA_STEP_IMAGE"]), ("cuda_image", "registry.example/g")):
        assert re.search(rf"^ +{name}:\n +defaultValue: {re.escape(image)}$", text, re.MULTILINE)


def test_nothing_is_installed_when_a_step_starts(spec: dict[str, Any]) -> None:
    assert "pip install" not in str(spec)


def producer(task: dict[str, Any], name: str) -> str:
    """The task whose output a task takes as its input artifact `name`."""
    return str(task["inputs"]["artifacts"][name]["taskOutputArtifact"]["producerTask"])


def test_everything_after_the_gate_waits_for_its_verdict(spec: dict[str, Any]) -> None:
    body = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert set(all_tasks(spec)) == set(STEPS)
    assert body["export"]["inputs"]["parameters"]["verdict"]["taskOutputParameter"]["producerTask"] == "gate"
    assert producer(body["publish"], "bundle") == "export"
    assert producer(body["condition-2"], "pipelinechannel--publish-release") == "publish"


def pods(spec: dict[str, Any], name: str = "root") -> int:
    """Pods of a run whose conditions are all false and that nothing is cached of.

    As kubeflow/pipelines 2.17 makes them: a driver for the root and for each graph in it, also for one whose condition
    is false, and a driver and a launcher for each task that runs something.
    """
    graph = spec["root"] if name == "root" else spec["components"][name]
    count = 1
    for task in graph["dag"]["tasks"].values():
        child = task["componentRef"]["name"]
        if "executorLabel" in spec["components"][child]:
            count += 2
        elif "condition" in task.get("triggerPolicy", {}):
            count += 1
        else:
            count += pods(spec, child)
    return count


def test_a_run_without_deploy_has_few_pods(spec: dict[str, Any]) -> None:
    assert pods(spec) <= MOST_PODS


def test_no_step_that_may_be_cached_stands_in_a_graph_that_another_waits_for(spec: dict[str, Any]) -> None:
    # Only a launcher ends such a graph, and a cached step has none: the next driver would find it still running.
    for component in (spec["root"], *spec["components"].values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            for given in task.get("inputs", {}).get("artifacts", {}).values():
                source = given.get("taskOutputArtifact", {}).get("producerTask", "")
                assert not source.startswith("condition"), source


def test_a_cached_step_has_no_input_of_an_uncached_one_but_parameters(spec: dict[str, Any]) -> None:
    # Kubeflow knows an artifact by a number of its own, so one that is made anew in each run is never known again.
    body = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    for name in set(body) - UNCACHED - {"condition-2"}:
        producers = {producer(body[name], item) for item in body[name]["inputs"].get("artifacts", {})}
        assert not producers & UNCACHED, name


def test_what_the_cache_cannot_see_is_never_cached(spec: dict[str, Any]) -> None:
    cached = {name: task["cachingOptions"].get("enableCache", False) for name, task in all_tasks(spec).items()}
    assert {name for name in cached if not cached[name]} == UNCACHED


def test_cache_key_of_every_step_has_the_library_version_and_that_of_fetch_the_data(spec: dict[str, Any]) -> None:
    for name, task in all_tasks(spec).items():
        given = task["inputs"]["parameters"]
        assert str(given["library_version"]["componentInputParameter"]).endswith("library_version"), name
    for name in ("fetch", "prepare"):
        digest = all_tasks(spec)[name]["inputs"]["parameters"]["data_digest"]["taskOutputParameter"]
        assert digest == {"producerTask": "check", "outputParameterKey": "data_digest"}
    assert spec["root"]["inputDefinitions"]["parameters"]["library_version"]["defaultValue"] == __version__


def test_each_executor_asks_the_cluster_for_what_its_step_needs() -> None:
    spec, platform = documents("train")
    executors = spec["deploymentSpec"]["executors"]
    asked = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert asked.keys() <= executors.keys()
    for label, executor in executors.items():
        name, own = label.removeprefix("exec-"), asked.get(label, {})
        needs, container = CLUSTER.get(name, set()), executor["container"]
        placed = f"{{{{$.inputs.parameters['pipelinechannel--check-{name}_%s']}}}}"
        count = container["resources"].get("accelerator", {}).get("resourceCount")
        assert (container["image"] == placed % "image") == (count == placed % "gpus") == (PLACED in needs), name
        memory = [(item["mountPath"], item["medium"]) for item in own.get("emptyDirMounts", [])]
        assert memory == ([("/dev/shm", "Memory")] if PLACED in needs else []), name
        assert ["tolerations" in own, "nodeSelector" in own] == [PLACED in needs] * 2, name
        assert "secretAsEnv" not in own, f"{name}: Kubeflow's launcher would take these for its own"
        secrets = {item["secretName"]: item for item in own.get("secretAsVolume", [])}
        assert set(secrets) == {f"pneumonia-{secret}" for secret in needs - {PLACED}}, name
        assert all(item["optional"] for item in secrets.values()), name
        assert "pvcMount" not in own, name


@pytest.mark.parametrize("name", PIPELINES)
def test_every_step_asks_for_cpu_and_memory(name: str) -> None:
    spec = documents(name)[0]
    for label, executor in spec["deploymentSpec"]["executors"].items():
        found = executor["container"]["resources"].keys()
        assert found >= {f"resource{kind}" for kind in ("CpuRequest", "CpuLimit", "MemoryRequest", "MemoryLimit")}, (
            label
        )


@pytest.mark.parametrize("name", PIPELINES)
def test_no_pod_lasts_for_ever(name: str) -> None:
    spec, platform = documents(name)
    asked = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    hours = {label: int(asked[label]["activeDeadlineSeconds"]) / 3600 for label in spec["deploymentSpec"]["executors"]}
    assert hours == {label: 72 if label == "exec-train" else 6 for label in hours}


@pytest.mark.parametrize("name", PIPELINES)
def test_what_a_task_is_given_exists_in_its_own_graph(name: str) -> None:
    """kfp 2.17 forgets to hand down a parameter that only resources, an image or a platform's settings name."""
    spec, platform = documents(name)
    asked = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for graph, component in (("root", spec["root"]), *spec["components"].items()):
        known = component.get("inputDefinitions", {}).get("parameters", {})
        tasks = component.get("dag", {}).get("tasks", {})
        for task in tasks.values():
            label = spec["components"][task["componentRef"]["name"]].get("executorLabel", "")
            text = f"{task.get('inputs')} {asked.get(label)}"
            for parameter in re.findall(r"'componentInputParameter': '([^']+)'", text):
                assert parameter in known, f"{graph}: {parameter}"
            for producer_task in re.findall(r"'producerTask': '([^']+)'", text):
                assert producer_task in tasks, f"{graph}: {producer_task}"


@pytest.mark.parametrize("name", PIPELINES)
def test_no_step_leaves_another_try_to_the_controller(name: str) -> None:
    assert not [task for task in all_tasks(documents(name)[0]).values() if "retryPolicy" in task]


@pytest.mark.parametrize("experiment", ["local", "smoke", "vit_base", "dinov2_small"])
def test_the_pipeline_makes_of_an_experiment_what_the_command_line_makes(
    spec: dict[str, Any], experiment: str, tmp_path: Path
) -> None:
    from pneumonia.config.compose import compose, load

    defaults = {name: item.get("defaultValue") for name, item in spec["root"]["inputDefinitions"]["parameters"].items()}
    taken = ("source", "data_root", "overrides", "gate", "tracking_uri")
    write_settings(overrides_of(experiment, **{name: defaults[name] for name in taken}), tmp_path / "settings")
    assert load(tmp_path / "settings") == compose([f"experiment={experiment}", f"data={defaults['source']}"])


def test_an_experiments_own_gate_reaches_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline's defaults must not stand behind an experiment as overrides."""
    import shutil

    from pneumonia.config import compose as module

    conf = tmp_path / "conf"
    shutil.copytree(module._CONF, conf)
    strict = "# @package _global_\ngate:\n  recall: 0.97\nevaluation:\n  recall_target: 0.98\ntracking:\n  uri: null\n"
    (conf / "experiment" / "strict.yaml").write_text(strict)
    monkeypatch.setattr(module, "_CONF", conf)
    write_settings(overrides_of("strict", "phantom", "", []), tmp_path / "settings")
    config = module.load(tmp_path / "settings")
    assert (config.gate.recall, config.evaluation.recall_target, config.tracking.uri) == (0.97, 0.98, None)


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
    assert overrides_of("local", "folder", "/x", ["training.max_steps=1"]) == [
        "experiment=local",
        "data=folder",
        "data.root=/x",
        "training.max_steps=1",
    ]
    assert overrides_of("smoke", "phantom", "", [], {"recall": 0.5, "stress_auroc": None}, "null") == [
        "experiment=smoke",
        "data=phantom",
        "tracking.uri=null",
        "gate.recall=0.5",
        "gate.stress_auroc=null",
    ]


@pytest.mark.parametrize("override", ["experiment=smoke", "data=folder", "data.root=/y", "gate.recall=0"])
def test_an_override_cannot_contradict_a_parameter(override: str) -> None:
    assert "gate.f1=0" in overrides_of("local", "folder", "", ["gate.f1=0"], {"recall": 0.5})
    with pytest.raises(ConfigError, match="parameter"):
        overrides_of("local", "folder", "/x", [override], {"recall": 0.5})


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
    mounts = {name: [item["mountPath"] for item in own["pvcMount"]] for name, own in asked.items() if "pvcMount" in own}
    assert mounts == {"exec-list-shards": ["/images"], "exec-score-shard": ["/images"]}
    tasks = all_tasks(spec)
    assert not any(task["cachingOptions"].get("enableCache") for task in tasks.values())
