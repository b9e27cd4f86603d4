"""The images as built: who runs in them, what is not in them, and the server's answers on a locked-down container."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumonia import __version__, contract
from pneumonia.bundle import Bundle
from pneumonia.inference.predictor import open_predictor
from pneumonia.release.publish import publish
from tests.bundles import xray
from tests.containers import LOCKED_DOWN, SERVER_IMAGE, STEP_IMAGE, docker, logs, require_image, serving
from tests.contracts.test_contract import curl_lines
from tests.dicoms import dicom, gradient
from tests.pipelines.test_local_run import OPEN_GATE, TINY

pytestmark = pytest.mark.docker

ALLOWED = ["--env", f"{contract.ALLOW_SYNTHETIC_ENV}=1"]


@pytest.fixture(params=[STEP_IMAGE, SERVER_IMAGE])
def image(request: pytest.FixtureRequest) -> str:
    return require_image(request.param)


@pytest.fixture(scope="module")
def step_image() -> str:
    return require_image(STEP_IMAGE)


@pytest.fixture(scope="module")
def mounted(synthetic_release: Path) -> list[str]:
    """Arguments that mount a release where KServe does, read-only."""
    return ["--volume", f"{synthetic_release}:{contract.MOUNTED_RELEASE}:ro"]


@pytest.fixture(scope="module")
def running(server_image: str, mounted: list[str]) -> Iterator[tuple[str, str]]:
    """Container and host:port of the server, started as the image's own command says."""
    arguments = [*LOCKED_DOWN, *mounted, *ALLOWED, "--publish", "127.0.0.1::8000"]
    with serving([*arguments, server_image, contract.MOUNTED_RELEASE], "/v2/health/ready", 60) as started:
        yield started


def config(image: str, field: str) -> object:
    return json.loads(docker("image", "inspect", "--format", f"{{{{json .Config.{field}}}}}", image).stdout)


def shell(image: str, command: str) -> str:
    done = docker("run", "--rm", *LOCKED_DOWN, "--entrypoint", "sh", image, "-c", command, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(image: str, *arguments: str) -> tuple[int, str]:
    """Exit code and words of a server that does not start."""
    done = docker("run", "--rm", *LOCKED_DOWN, *arguments[:-1], image, arguments[-1], check=False)
    return done.returncode, done.stderr


def test_nobody_is_root(image: str) -> None:
    assert config(image, "User") == "1000:1000"


def test_nothing_compiles_and_nothing_is_left_of_the_build(image: str) -> None:
    assert shell(image, "command -v gcc g++ cc c++ clang make ld; true") == ""
    assert shell(image, "ls -d /build /root/.cache /tmp/* 2>/dev/null; true") == ""


def test_labels_say_what_it_is(image: str) -> None:
    labels = config(image, "Labels")
    assert isinstance(labels, dict)
    prefix = "org.opencontainers.image"
    assert labels[f"{prefix}.title"] == image.partition(":")[0]
    assert (labels[f"{prefix}.version"], labels[f"{prefix}.licenses"]) == (__version__, "Apache-2.0")
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels[f"{prefix}.revision"])


def test_the_library_inside_is_this_one(image: str) -> None:
    """An image of yesterday's sources would pass every other test."""
    sums = "find . -name '*.py' | LC_ALL=C sort | xargs sha256sum"
    where = "import os, pneumonia; print(os.path.dirname(pneumonia.__file__))"
    inside = shell(image, f'cd "$(python3 -c "{where}")" && {sums}').splitlines()
    here = subprocess.run(sums, shell=True, cwd=Path(contract.__file__).parent, capture_output=True, text=True).stdout
    assert inside == here.splitlines(), "the image holds other sources; build it again with `make images`"


def test_a_step_is_its_command_alone(step_image: str) -> None:
    assert config(step_image, "Entrypoint") is None
    done = docker("run", "--rm", *LOCKED_DOWN, step_image, "pneumoctl", "--version")
    assert done.stdout.split() == ["pneumoctl", __version__]


def test_a_step_has_what_the_components_import(step_image: str) -> None:
    modules = (
        "torch transformers mlflow kfp.dsl.executor_main kserve kubernetes kaggle pydicom boto3 pyarrow matplotlib"
    )
    code = f"import importlib; [importlib.import_module(name) for name in '{modules}'.split()]"
    shell(step_image, f'KAGGLE_API_TOKEN=none python3 -c "{code}"')
    built = config(step_image, "Labels")["pneumonia.torch-build"]
    found = shell(step_image, 'python3 -c \'import torch; print("cuda" if torch.version.cuda else "cpu")\'')
    assert found == f"{built}\n"


@pytest.mark.slow
def test_the_pipeline_runs_without_network_and_root(step_image: str) -> None:
    """As one container: any user, nothing but /tmp to write to. It has to be executable, for the engine's own sake."""
    locked = ["/tmp:exec" if argument == "/tmp" else argument for argument in LOCKED_DOWN]
    command = ["pneumoctl", "pipeline", "run", *TINY, *OPEN_GATE]
    done = docker("run", "--rm", *locked, "--network", "none", step_image, *command, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["synthetic"] is True
    assert result["release"].startswith("/tmp/releases/")


def test_every_curl_line_of_the_readme_is_answered(running: tuple[str, str], root: Path, tmp_path: Path) -> None:
    (tmp_path / "xray.jpeg").write_bytes(xray(1))
    lines = curl_lines((root / "README.md").read_text("utf-8"))
    assert len(lines) == 4
    for line in lines:
        command = re.sub(r"\bcurl\s", "curl --fail ", line.replace("localhost:8000", running[1]))
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"], cwd=tmp_path, capture_output=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr!r}"
    answer = {output["name"]: output["data"] for output in json.loads(done.stdout)["outputs"]}
    assert answer[contract.OUTPUT_PREDICTION][0] in contract.LABELS


def test_the_server_answers_as_the_library_does(running: tuple[str, str], synthetic: Bundle) -> None:
    images = [xray(seed) for seed in range(6)] + [dicom(gradient())]
    expected = open_predictor("onnx", synthetic.path).predict(images)
    found = open_predictor("triton", url=running[1]).predict(images)
    assert [answer.label for answer in found] == [answer.label for answer in expected]
    assert [a.probability for a in found] == pytest.approx([a.probability for a in expected], abs=1e-6)
    assert {answer.model_id for answer in found} == {synthetic.model_id}


def test_one_server_runs_watched_and_is_healthy(running: tuple[str, str]) -> None:
    name, _ = running
    look = r"for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline; echo; done"
    processes = docker("exec", name, "sh", "-c", look).stdout.splitlines()
    assert processes[0].startswith("python3 -m pneumonia.triton.container ")
    (server,) = [line for line in processes if line.startswith("tritonserver ")]
    assert "--model-control-mode=none" in server
    until = time.monotonic() + 40
    while docker("inspect", "--format", "{{.State.Health.Status}}", name).stdout.strip() != "healthy":
        assert time.monotonic() < until, logs(name)
        time.sleep(0.5)


def test_a_release_inside_the_image_is_served_by_default(baked_image: str, synthetic: Bundle) -> None:
    """And a server that is stopped ends by itself."""
    arguments = [*LOCKED_DOWN, *ALLOWED, "--publish", "127.0.0.1::8000", baked_image]
    with serving(arguments, "/v2/health/ready", 60) as (name, address):
        (answer,) = open_predictor("triton", url=address).predict([xray(1)])
        assert answer.model_id == synthetic.model_id
        docker("stop", "--time", "20", name)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip() == "0", logs(name)


def test_a_model_of_drawn_images_is_refused(server_image: str, mounted: list[str]) -> None:
    code, words = refused(server_image, *mounted, contract.MOUNTED_RELEASE)
    assert code == 5
    assert words.startswith(f"error: {contract.MOUNTED_RELEASE}: tiny was trained on drawn images")
    assert f"{contract.ALLOW_SYNTHETIC_ENV}=1" in words
    assert words.count("\n") == 1


def test_a_missing_release_is_a_sentence(server_image: str) -> None:
    code, words = refused(server_image, contract.MOUNTED_RELEASE)
    assert code == 4
    assert words.startswith(
        f"error: {contract.MOUNTED_RELEASE}: no release (pneumonia_detection/config.pbtxt is missing)"
    )
    assert words.count("\n") == 1


def test_a_release_that_may_not_be_read_is_a_sentence(server_image: str, synthetic: Bundle, tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("the container's user has to be another than the owner")
    release = publish(synthetic.path, tmp_path)
    release.chmod(0o700)
    code, words = refused(server_image, "--volume", f"{release}:/mnt/models:ro", contract.MOUNTED_RELEASE)
    assert code == 4
    assert "user 54321 cannot read it (Permission denied)" in words
    assert words.count("\n") == 1
