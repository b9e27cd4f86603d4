"""What the server refuses: closed endpoints, requests that are too large, tensors that are no answer."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc_client
from tritonclient.utils import InferenceServerException

from pneumonia import contract
from pneumonia.triton.hardening import hardening_flags
from pneumonia.triton.repository import write_repository
from pneumonia.triton.server import TritonServer
from tests.bundles import serving, tiny_bundle, xray
from tests.triton.test_serving import as_json, post
from tests.triton.test_watching import metrics

CLOSED = {
    "load": ("POST", f"/v2/repository/models/{contract.TENSOR_MODEL}/load"),
    "unload": ("POST", f"/v2/repository/models/{contract.ENSEMBLE}/unload"),
    "index": ("POST", "/v2/repository/index"),
    "shared memory": ("POST", "/v2/systemsharedmemory/region/a/register"),
    "shared memory status": ("GET", "/v2/systemsharedmemory/status"),
    "GPU memory": ("POST", "/v2/cudasharedmemory/region/a/register"),
    "trace": ("POST", "/v2/trace/setting"),
    "trace of a model": ("POST", f"/v2/models/{contract.TENSOR_MODEL}/trace/setting"),
    "log": ("POST", "/v2/logging"),
    "log settings": ("GET", "/v2/logging"),
}
OPEN = ["/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{contract.ENSEMBLE}",
        f"/v2/models/{contract.ENSEMBLE}/ready", f"/v2/models/{contract.ENSEMBLE}/config",
        f"/v2/models/{contract.ENSEMBLE}/stats", "/v2/models/stats"]  # fmt: skip


def call(server: TritonServer, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    body = b"{}" if method == "POST" else None
    request = urllib.request.Request(server.http_url + path, body, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("headers", [{}, {"pneumonia-secret": ""}, {"pneumonia-secret": "guess"}])
def test_what_changes_the_server_is_closed(server: TritonServer, name: str, headers: dict[str, str]) -> None:
    status, text = call(server, *CLOSED[name], headers)
    assert status == 403
    assert "restricted" in text


@pytest.mark.parametrize("path", OPEN)
def test_what_only_reads_is_open(server: TritonServer, path: str) -> None:
    assert call(server, "GET", path)[0] == 200


def test_grpc_is_closed_too(server: TritonServer) -> None:
    client = grpc_client.InferenceServerClient(server.address("grpc"))
    assert client.is_server_ready()
    calls: list[Any] = [
        lambda: client.load_model(contract.ENSEMBLE),
        lambda: client.unload_model(contract.ENSEMBLE),
        lambda: client.get_model_repository_index(),
        lambda: client.register_system_shared_memory("a", "/a", 1),
        lambda: client.get_system_shared_memory_status(),
        lambda: client.register_cuda_shared_memory("a", b"YQ==", 0, 1),
        lambda: client.update_trace_settings(settings={"trace_level": ["TENSORS"]}),
        lambda: client.update_log_settings({"log_verbose_level": 1}),
        lambda: client.get_log_settings(),
    ]
    for closed in calls:
        with pytest.raises(InferenceServerException, match="restricted"):
            closed()
    client.close()


def test_every_start_has_a_secret_of_its_own() -> None:
    first, second = hardening_flags(), hardening_flags()
    assert first != second
    assert [a.split("=")[:-1] for a in first if "restricted" in a] == [
        b.split("=")[:-1] for b in second if "restricted" in b
    ]
    assert not any("shared-memory" in flag for flag in hardening_flags(allow_shared_memory=True))


def test_a_request_above_the_limit_is_refused(server: TritonServer) -> None:
    raw = {"Inference-Header-Content-Length": "0"}
    status, body = post(server, b"\xff" * (contract.MAX_REQUEST_BYTES + 1), raw)
    assert status == 400
    assert "67,108,865 bytes; one request may carry 67,108,864" in json.loads(body)["error"]
    assert post(server, as_json(xray(1)))[0] == 200


def test_logits_that_are_no_number_are_no_answer(tmp_path: Path) -> None:
    write_repository(tiny_bundle(tmp_path / "models", nan_above=-100.0), tmp_path / "repository")
    with serving(tmp_path / "repository") as server:
        status, body = post(server, as_json(xray(1)))
        assert metrics(server)[f'{contract.METRIC_REFUSED}{{why="failed"}}'] == 1
    assert status == 500
    assert contract.NOT_FINITE in json.loads(body)["error"]


def test_an_image_can_start_any_command_hardened(tmp_path: Path) -> None:
    code = (
        "import resource, sys, os\n"
        "print(resource.getrlimit(resource.RLIMIT_STACK)[0], os.environ['PYTHONDONTWRITEBYTECODE'], *sys.argv[1:])"
    )
    command = [
        sys.executable,
        "-m",
        "pneumonia.triton.hardening",
        sys.executable,
        "-c",
        code,
        "--model-repository=/mnt/models",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    stack, bytecode, *arguments = done.stdout.split()
    assert (done.returncode, bytecode) == (0, "1")
    assert int(stack) == -1 or int(stack) > 8 * 2**20
    assert arguments[0] == "--model-repository=/mnt/models"
    assert "--model-control-mode=none" in arguments
    done = subprocess.run([*command[:3], "no-such-command"], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (1, "error: no-such-command: No such file or directory\n")
