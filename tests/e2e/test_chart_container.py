"""The server's image under Docker with exactly what the chart asks for: command, user, read-only root and probes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import xray
from tests.containers import answers, require_image, serving

pytest.importorskip("helm_python", reason="helm-python-sdk is not installed: `make setup`")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import helm_check

IMAGE_ENV = "PNEUMONIA_TRITON_IMAGE"

pytestmark = pytest.mark.docker


def docker_arguments(container: dict[str, Any], volumes: list[dict[str, Any]]) -> list[str]:
    """What `docker run` has to be given to run this container as a node would."""
    security = container["securityContext"]
    sizes = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in volumes}
    arguments = ["--read-only", "--user", f"{security['runAsUser']}:{security['runAsGroup']}"]
    arguments += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    for mount in container["volumeMounts"]:
        size = sizes[mount["name"]].removesuffix("i").lower()
        arguments += ["--tmpfs", f"{mount['mountPath']}:size={size},mode=1777"]
    for variable in container["env"]:
        arguments += ["--env", f"{variable['name']}={variable['value']}"]
    limits = container["resources"]["limits"]
    arguments += ["--cpus", limits["cpu"], "--memory", limits["memory"].removesuffix("i").lower()]
    for port in container["ports"]:
        arguments += ["--publish", f"127.0.0.1::{port['containerPort']}"]
    (command,) = container["command"]
    return [*arguments, "--entrypoint", command, container["image"], *container["args"]]


@pytest.fixture(scope="module")
def image(request: pytest.FixtureRequest) -> str:
    """Of PNEUMONIA_TRITON_IMAGE, which has to hold a release, or one that is built for the tests."""
    named = os.environ.get(IMAGE_ENV)
    return require_image(named) if named else str(request.getfixturevalue("baked_image"))


@pytest.fixture(scope="module")
def rendered(image: str) -> tuple[dict[str, Any], str]:
    """The chart's container and its notes, for the image."""
    repository, _, tag = image.rpartition(":")
    values = {"image": {"repository": repository, "tag": tag}, "model": {"allowSynthetic": True}}
    texts = helm_check.render(values)
    service = next(item for item in helm_check.objects(values) if item["kind"] == "InferenceService")
    return service["spec"]["predictor"], texts["pneumonia/templates/NOTES.txt"]


@pytest.fixture(scope="module")
def address(rendered: tuple[dict[str, Any], str]) -> Iterator[str]:
    """host:port of HTTP of the running container, once its startup probe succeeds."""
    predictor, _ = rendered
    (container,) = predictor["containers"]
    startup = container["startupProbe"]
    with serving(
        docker_arguments(container, predictor["volumes"]),
        ready=startup["httpGet"]["path"],
        timeout_s=startup["periodSeconds"] * startup["failureThreshold"],
        port=container["ports"][0]["containerPort"],
    ) as (_, found):
        yield found


def test_the_probes_succeed(rendered: tuple[dict[str, Any], str], address: str) -> None:
    (container,) = rendered[0]["containers"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert answers(address, container[name]["httpGet"]["path"]), name


def test_the_commands_of_the_notes_work(rendered: tuple[dict[str, Any], str], address: str, tmp_path: Path) -> None:
    (tmp_path / "xray.jpeg").write_bytes(xray(1))
    commands = [line.strip() for line in rendered[1].splitlines() if re.match(r" +(curl|pneumoctl) ", line)]
    assert len(commands) == 3
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        here = command.replace("localhost:8000", address).replace("curl ", "curl -f ")
        done = subprocess.run(["bash", "-c", here], cwd=tmp_path, env=environment, capture_output=True, timeout=60)
        assert done.returncode == 0, f"{here}: {done.stderr!r}"
    assert json.loads(done.stdout)["prediction"] in ("NORMAL", "PNEUMONIA")
