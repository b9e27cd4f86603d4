"""The stages of dvc.yaml, and data and bundle there and back through a DVC remote, with real DVC and git."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pneumonia.bundle import Bundle, open_bundle
from pneumonia.config.compose import compose
from pneumonia.data.prepare import load_prepared

pytest.importorskip("dvc", reason="DVC is not installed; pip install 'pneumonia[data]'")
BIN = Path(sys.executable).parent


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Path:
    """A git repository of the files that the stages need, with few phantoms."""
    folder = tmp_path / "project"
    for name in ("src/pneumonia", ".dvc/config", ".dvc/.gitignore", ".gitignore", "dvc.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (root / name).is_dir() else shutil.copyfile
        copy(root / name, folder / name)
    stages = (folder / "dvc.yaml").read_text("utf-8")
    assert "settings: data=phantom\n" in stages
    few = stages.replace("settings: data=phantom\n", "settings: data=phantom data.num_images=100\n")
    (folder / "dvc.yaml").write_text(few, "utf-8")
    run(folder, "git", "init", "-q")
    commit(folder)
    return folder


def run(cwd: Path, *command: str) -> str:
    names = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
    environment = {**os.environ, **dict.fromkeys(names, "test"), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(cwd / "src")
    environment["DVC_NO_ANALYTICS"] = "1"
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(cwd: Path, *arguments: str) -> str:
    return run(cwd, sys.executable, "-m", "dvc", *arguments)


def commit(folder: Path) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "state")


def content(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_data_and_bundle_travel_through_a_remote(project: Path, bundle: Bundle, tmp_path: Path) -> None:
    dvc(project, "repro")
    data = load_prepared(project / "data/prepared")
    assert len(data.labels) == 100
    assert "Stage 'prepare' didn't change, skipping" in dvc(project, "repro")

    shutil.copytree(bundle.path, project / "models")
    dvc(project, "add", "models")
    dvc(project, "remote", "add", "--default", "store", str(tmp_path / "store"))
    commit(project)
    tracked = run(project, "git", "ls-files").splitlines()
    assert {"dvc.lock", "models.dvc"} <= set(tracked)
    assert [name for name in tracked if name.startswith(("data/", "models/"))] == []
    assert run(project, "git", "diff", "HEAD~1", "--stat", "--", ".gitignore") == ""
    dvc(project, "push")

    other = tmp_path / "other"
    run(tmp_path, "git", "clone", "-q", str(project), str(other))
    assert not (other / "data").exists() and not (other / "models").exists()
    dvc(other, "pull")
    for name in ("data/raw", "data/prepared", "models"):
        assert content(other / name) == content(project / name)
    assert load_prepared(other / "data/prepared").manifest == data.manifest
    assert open_bundle(other / "models").model_id == bundle.model_id


@pytest.mark.slow
def test_a_configuration_file_that_a_stage_reads_makes_it_stale(project: Path) -> None:
    dvc(project, "repro")
    assert "up to date" in dvc(project, "status", "prepare")
    for name, dependency in (("config/conf/config.yaml", "config/conf"), ("data/split.py", "src/pneumonia/data")):
        file = project / "src/pneumonia" / name
        before = file.read_text("utf-8")
        file.write_text(before + "\n# changed\n", "utf-8")
        assert dependency in dvc(project, "status", "prepare")
        file.write_text(before, "utf-8")
    made = (project / "data/prepared/prepared.json").stat().st_mtime_ns
    decoder = project / "src/pneumonia/core/dicom.py"
    decoder.write_text(decoder.read_text("utf-8") + "\n# changed\n", "utf-8")
    dvc(project, "repro")
    assert (project / "data/prepared/prepared.json").stat().st_mtime_ns > made, "the old result was kept"


def test_every_file_of_the_configuration_is_a_dependency_of_both_stages(root: Path) -> None:
    stages = yaml.safe_load((root / "dvc.yaml").read_text("utf-8"))["stages"]
    conf = {str(path.relative_to(root)) for path in (root / "src/pneumonia/config/conf").rglob("*.yaml")}
    for stage in stages.values():
        for file in conf:
            assert any(file.startswith(dependency) for dependency in stage["deps"]), file
        assert all((root / name).exists() for name in stage["deps"] if not name.startswith("data/"))
        assert all(option.get("cache", True) for out in stage["outs"] if isinstance(out, dict)
                   for option in out.values())  # fmt: skip


HOW_NOT_WHAT = ("__init__.py", "errors.py", "files.py", "core/cores.py")
"""Modules that prepare imports and whose code decides nothing about the bytes that it writes."""


def imported(file: Path, source: Path) -> set[Path]:
    """Modules below `source` that the code of `file` names, inside functions too."""
    named = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            named |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    places = {source / name.replace(".", "/") for name in named}
    return {file for place in places for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}


def test_every_module_that_decides_what_prepare_writes_is_its_dependency(root: Path) -> None:
    deps = yaml.safe_load((root / "dvc.yaml").read_text("utf-8"))["stages"]["prepare"]["deps"]
    source = root / "src"
    found: set[Path] = set()
    new = {source / "pneumonia/data/prepare.py"}
    while new:
        found |= new
        new = {module for file in new for module in imported(file, source)} - found
    modules = {file.relative_to(root) for file in found}
    assert Path("src/pneumonia/core/image.py") in modules
    ours = Path("src/pneumonia")
    missing = {
        str(module)
        for module in modules - {ours / name for name in HOW_NOT_WHAT}
        if not any(module == Path(dep) or Path(dep) in module.parents for dep in deps)
    }
    assert missing == set()


def test_the_settings_named_in_dvc_yaml_compose(root: Path) -> None:
    settings = yaml.safe_load((root / "dvc.yaml").read_text("utf-8"))["vars"][0]["settings"]
    assert compose(settings.split()).data.source == "phantom"
