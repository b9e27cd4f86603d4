"""Help, and answers from ONNX Runtime or a server, load nothing of what training needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pneumonia.bundle import Bundle
from pneumonia.triton.server import TritonServer
from tests.bundles import xray

HEAVY = ("torch", "transformers", "mlflow", "kfp", "hydra")
CODE = """
import atexit, json, sys
from pneumonia.cli.app import main
atexit.register(lambda: print("MODULES", json.dumps(sorted(sys.modules)), file=sys.stderr))
main()
"""


def modules_after(*arguments: str) -> set[str]:
    """Names in sys.modules at the end of a command that succeeds."""
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return set(json.loads(done.stderr.rpartition("MODULES ")[2]))


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "xray.jpeg"
    path.write_bytes(xray(1))
    return str(path)


def test_help() -> None:
    loaded = modules_after("--help")
    assert loaded.isdisjoint({*HEAVY, "numpy", "onnxruntime", "tritonclient", "PIL"})
    assert "pneumonia.cli.infer" in loaded


def test_onnx(image: str, bundle: Bundle) -> None:
    loaded = modules_after("infer", image, "--mode", "onnx", "--bundle", str(bundle.path))
    assert loaded.isdisjoint({*HEAVY, "tritonclient"})
    assert "onnxruntime" in loaded


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_triton(image: str, server: TritonServer, protocol: str) -> None:
    arguments = ["--mode", "triton", "--protocol", protocol, "--url", server.address(protocol)]
    loaded = modules_after("infer", image, *arguments)
    assert loaded.isdisjoint({*HEAVY, "onnxruntime"})
    assert f"tritonclient.{protocol}" in loaded


def test_a_server_is_started_without_them(bundle: Bundle) -> None:
    # A port that is taken ends the command where everything is loaded.
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        command = [sys.executable, "-c", CODE, "serve", "--bundle", str(bundle.path), "--http-port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    loaded = set(json.loads(done.stderr.rpartition("MODULES ")[2]))
    assert "pneumonia.triton.server" in loaded
    assert loaded.isdisjoint({*HEAVY, "onnxruntime", "tritonclient", "pytriton"})
