"""What `make images` builds into the server's image, with a command that only prints in Docker's place."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """The script and what it reads, without releases."""
    shutil.copytree(root / "images", tmp_path / "images")
    (tmp_path / "src" / "pneumonia").mkdir(parents=True)
    shutil.copy(root / "src" / "pneumonia" / "__init__.py", tmp_path / "src" / "pneumonia")
    return tmp_path


def release(checkout: Path, name: str, age_s: int, synthetic: bool = False) -> Path:
    """A release that was published `age_s` seconds ago."""
    folder = checkout / "releases" / name
    folder.mkdir(parents=True)
    manifest = folder / "release.json"
    manifest.write_text(f'{{\n  "synthetic": {str(synthetic).lower()}\n}}\n')
    written = manifest.stat().st_mtime - age_s
    os.utime(manifest, (written, written))
    return folder


def build(checkout: Path, image: str, **variables: str) -> tuple[int, str]:
    """Exit code, and everything that the script and the command in Docker's place printed."""
    environment = {**os.environ, "DOCKER": "echo", **variables}
    script = ["bash", "images/images.sh", "build", image]
    done = subprocess.run(script, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_the_newest_release_goes_into_the_servers_image(checkout: Path) -> None:
    release(checkout, "old", 3600)
    release(checkout, "new", 60)
    code, said = build(checkout, "triton-cpu")
    assert code == 0
    assert "gets the release releases/new" in said
    assert "--build-arg RELEASE=build/images/release" in said
    assert (checkout / "build" / "images" / "release" / "release.json").is_file()


def test_one_of_drawn_images_is_said_to_need_permission(checkout: Path) -> None:
    release(checkout, "drawn", 60, synthetic=True)
    assert "model.allowSynthetic=true" in build(checkout, "triton-cpu")[1]


@pytest.mark.parametrize(("variables", "there"), [({}, False), ({"RELEASE": "none"}, True)])
def test_without_a_release_it_says_what_to_give(checkout: Path, variables: dict[str, str], there: bool) -> None:
    if there:
        release(checkout, "unwanted", 60)
    code, said = build(checkout, "triton-cpu", **variables)
    assert code == 0
    assert "no release goes into the server's image" in said
    assert "make demo first, or RELEASE=<folder" in said
    assert "--build-arg RELEASE=" not in said


def test_a_release_that_is_none_is_refused(checkout: Path) -> None:
    code, said = build(checkout, "triton-cpu", RELEASE="nowhere")
    assert code == 4
    assert "RELEASE=nowhere: no release there (release.json is missing)" in said


def test_the_step_image_asks_for_no_release(checkout: Path) -> None:
    release(checkout, "any", 60)
    said = build(checkout, "step", TORCH_BUILD="cuda")[1]
    assert "release" not in said.replace("org.opencontainers", "")
    assert "--build-arg TORCH_BUILD=cuda" in said
