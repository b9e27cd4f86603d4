"""The programs of docs/clients.md, as they stand there: other people's clients against the real server."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pneumonia.bundle import Bundle
from pneumonia.inference.predictor import open_predictor
from pneumonia.triton.server import TritonServer
from tests.bundles import serving, xray

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = dict(re.findall(r"<!-- client:(\S+) -->\n```python\n(.*?)```", (ROOT / "docs/clients.md").read_text(), re.S))
SHARED = PROGRAMS.pop("shared-memory")


def run(program: str, server: TritonServer, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program in a process and folder of its own, asking the given server."""
    (folder / "xray.jpeg").write_bytes(xray(3))
    for name, port in (("http", 8000), ("grpc", 8001)):
        program = program.replace(f"localhost:{port}", server.address(name))
    # A region's name is the machine's, and others may run these tests too.
    program = program.replace('"/xray"', f'"/xray-{server.ports["http"]}"')
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120)


def check(done: subprocess.CompletedProcess[str], bundle: Bundle) -> None:
    """Every line that was printed is the library's own answer."""
    assert done.returncode == 0, done.stderr
    (expected,) = open_predictor("onnx", bundle.path).predict([xray(3)])
    lines = done.stdout.splitlines()
    assert lines
    for line in lines:
        label, confidence = line.split()
        assert (label, float(confidence)) == (expected.label, pytest.approx(expected.confidence, abs=1e-6))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_client_of_others_gets_the_answer(name: str, server: TritonServer, bundle: Bundle, tmp_path: Path) -> None:
    # Importing it here would be in the way of tritonclient.grpc.
    if name.startswith("kserve") and importlib.util.find_spec("kserve") is None:
        pytest.skip("kserve is not installed; pip install 'pneumonia[pipelines]'")
    check(run(PROGRAMS[name], server, tmp_path), bundle)


def test_shared_memory_where_it_is_allowed(release: Path, bundle: Bundle, tmp_path: Path) -> None:
    with serving(release, allow_shared_memory=True) as server:
        check(run(SHARED, server, tmp_path), bundle)


def test_shared_memory_is_closed_otherwise(server: TritonServer, tmp_path: Path) -> None:
    done = run(SHARED, server, tmp_path)
    assert done.returncode == 1
    assert "This API is restricted, expecting header 'pneumonia-secret'" in done.stderr
