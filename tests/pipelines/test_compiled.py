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
from pneumonia.pipelines.step import settings_of

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("fetch", "prepare", "train", "evaluate", "gate", "export-onnx", "publish")


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    """The compiled pipeline, parsed."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; pip install 'pneumonia[pipelines]'")
    loaded: dict[str, Any] = yaml.safe_load(compiled_pipeline().read_text("utf-8"))
    return loaded


def recompiled(tmp_path: Path, **environment: str) -> str:
    """What pipelines/train.py compiles to now; compiled in a copy, so that the checkout stays as it is."""
    pytest.importorskip("kfp", reason="kfp is not installed; pip install 'pneumonia[pipelines]'")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pipelines.train import train_pipeline\n"
        "from kfp import compiler; compiler.Compiler().compile(train_pipeline, sys.argv[2])"
    )
    out = tmp_path / "train.yaml"
    clean = {key: value for key, value in os.environ.items() if key != "PNEUMONIA_STEP_IMAGE"}
    subprocess.run([sys.executable, "-c", code, str(ROOT), str(out)], env={**clean, **environment}, check=True)
    return out.read_text("utf-8")


def test_compiled_file_is_up_to_date(tmp_path: Path) -> None:
    committed = (ROOT / "pipelines" / "train.yaml").read_text("utf-8")
    # Another hash seed each time: an order that depends on it would differ from run to run.
    assert recompiled(tmp_path, PYTHONHASHSEED="1") == committed, "run `make generate` and commit pipelines/train.yaml"
    assert recompiled(tmp_path, PYTHONHASHSEED="2") == committed


def test_image_is_named_in_one_place(tmp_path: Path) -> None:
    text = recompiled(tmp_path, PNEUMONIA_STEP_IMAGE="registry.example/step@sha256:0")
    assert set(re.findall(r"image: (.+)", text)) == {"registry.example/step@sha256:0"}


def test_nothing_is_installed_when_a_step_starts(spec: dict[str, Any]) -> None:
    assert "pip install" not in str(spec)


def test_everything_after_the_gate_waits_for_its_verdict(spec: dict[str, Any]) -> None:
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == set(STEPS)
    verdict = tasks["export-onnx"]["inputs"]["artifacts"]["verdict"]["taskOutputArtifact"]
    assert verdict == {"outputArtifactKey": "verdict", "producerTask": "gate"}
    bundle = tasks["publish"]["inputs"]["artifacts"]["bundle"]["taskOutputArtifact"]
    assert bundle["producerTask"] == "export-onnx"


def test_what_the_cache_cannot_see_is_never_cached(spec: dict[str, Any]) -> None:
    cached = {
        name: task["cachingOptions"].get("enableCache", False) for name, task in spec["root"]["dag"]["tasks"].items()
    }
    assert {name for name in cached if not cached[name]} == {"fetch", "gate", "publish"}


def test_cache_key_of_every_step_has_the_library_version(spec: dict[str, Any]) -> None:
    for name, task in spec["root"]["dag"]["tasks"].items():
        assert task["inputs"]["parameters"]["library_version"] == {"componentInputParameter": "library_version"}, name
    assert spec["root"]["inputDefinitions"]["parameters"]["library_version"]["defaultValue"] == __version__


def test_components_are_a_signature_over_one_call() -> None:
    import ast

    files = sorted((ROOT / "components").glob("*/component.py"))
    assert {file.parent.name.replace("_", "-") for file in files} == set(STEPS)
    for file in files:
        assert (file.parent / "README.md").is_file(), file.parent
        (function,) = [node for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
        statements = [node for node in ast.walk(ast.Module(function.body, [])) if isinstance(node, ast.stmt)]
        assert len(statements) <= 8, f"{file}: {len(statements)} statements; put the logic into the library"


def test_parameters_become_settings() -> None:
    assert settings_of("local", "folder", "/x", ["training.max_steps=1"]) == [
        "experiment=local",
        "data=folder",
        "data.root=/x",
        "training.max_steps=1",
    ]
    assert settings_of("smoke", "phantom", "", []) == ["experiment=smoke", "data=phantom"]


@pytest.mark.parametrize("override", ["experiment=smoke", "data=folder", "data.root=/y"])
def test_an_override_cannot_contradict_a_parameter(override: str) -> None:
    with pytest.raises(ConfigError, match="parameter"):
        settings_of("local", "folder", "/x", [override])
