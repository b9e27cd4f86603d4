"""The server's image, and one with a release inside, for the tests that need Docker."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumonia.bundle import Bundle
from pneumonia.release.publish import publish
from tests.bundles import tiny_bundle
from tests.containers import SERVER_IMAGE, docker, require_image

BASE_LABEL = "org.opencontainers.image.base.name"


@pytest.fixture(scope="session")
def server_image() -> str:
    return require_image(SERVER_IMAGE)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that says it was trained on drawn images."""
    return tiny_bundle(tmp_path_factory.mktemp("synthetic") / "models", data={"synthetic": True})


@pytest.fixture(scope="session")
def synthetic_release(synthetic: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(synthetic.path, tmp_path_factory.mktemp("synthetic-releases"))


@pytest.fixture(scope="session")
def baked_image(server_image: str, synthetic_release: Path, root: Path) -> Iterator[str]:
    """The server's image with that release inside, built as `make images RELEASE=...` does, from Docker's cache."""
    base = docker("image", "inspect", "--format", f'{{{{index .Config.Labels "{BASE_LABEL}"}}}}', server_image).stdout
    settings = {"RELEASE": str(synthetic_release), "VERSION": "test", "BASE_IMAGE": base.strip()}
    command = ["bash", str(root / "images" / "images.sh"), "build", "triton-cpu"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name = f"{server_image.partition(':')[0]}:test"
    yield name
    docker("rmi", "--force", name, check=False)
