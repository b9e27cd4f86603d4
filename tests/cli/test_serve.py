"""`pneumoctl serve` as a user runs it: the line that says ready, every way it ends, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.cli.demo import free_ports
from tests.bundles import HAS_SERVER, tiny_bundle

PNEUMOCTL = [sys.executable, "-c", "from pneumonia.cli.app import main; main()"]
SHARED_MEMORY = Path("/dev/shm")
pytestmark = pytest.mark.skipif(not HAS_SERVER, reason="the server's wheel is for Linux x86-64")


def options(**arguments: object) -> list[str]:
    ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))
    return [f"--{name.replace('_', '-')}={value}" for name, value in {**ports, **arguments}.items()]


@contextlib.contextmanager
def serve(*arguments: str, temporary: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """The command, its temporary files in the folder given; ended with the test where that did not end it."""
    environment = os.environ | ({"TMPDIR": str(temporary)} if temporary else {})
    command = [*PNEUMOCTL, "serve", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def first_line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_answers_and_ends_cleanly(bundle: Bundle, tmp_path: Path, end: signal.Signals) -> None:
    log = tmp_path / "logs" / "triton.log"
    with serve(*options(bundle=bundle.path, log_file=log)) as process:
        ready = first_line(process)
        assert list(ready) == ["model", "http", "grpc", "metrics"]
        with urllib.request.urlopen(f"{ready['http']}/v2/models/{ready['model']}") as response:
            assert json.load(response)["name"] == contract.ENSEMBLE
        with urllib.request.urlopen(ready["metrics"]) as response:
            assert b"nv_inference_request_success" in response.read()
        with socket.create_connection(ready["grpc"].split(":"), timeout=5):
            pass
        process.send_signal(end)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert error.splitlines() == ["serve: ready, Ctrl-C ends it", "serve: stopped"]
    assert "Started HTTPService" in log.read_text()


@pytest.mark.parametrize("after_s", [0, 0.05, 0.5])
def test_stopping_while_it_starts_is_clean_too(bundle: Bundle, tmp_path: Path, after_s: float) -> None:
    with serve(*options(bundle=bundle.path), temporary=tmp_path) as process:
        # Its handler stands once the child is there; until then the signal would end Python itself.
        while not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text():
            assert process.poll() is None
        (private,) = (path.name for path in tmp_path.glob("pneumonia-triton.*"))
        time.sleep(after_s)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert error.splitlines()[-1] == "serve: stopped"
    nothing_left(tmp_path, private)


def test_a_release_is_served_after_its_files_were_verified(release: Path, tmp_path: Path) -> None:
    with serve(*options(release=release)) as process:
        assert first_line(process)["model"] == contract.ENSEMBLE
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    changed = Path(shutil.copytree(release, tmp_path / "release"))
    with (changed / contract.ENSEMBLE / "1" / contract.ONNX_FILE).open("ab") as stream:
        stream.write(b"\0")
    refused(3, "was changed after the release was written", release=changed)


def child_of(process: subprocess.Popen[str]) -> str:
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return child


def test_a_server_that_dies_is_started_again_and_in_the_end_given_up(bundle: Bundle, tmp_path: Path) -> None:
    with serve(*options(bundle=bundle.path), temporary=tmp_path) as process:
        url = first_line(process)["http"]
        assert process.stderr is not None
        for life in range(4):
            while "ready" not in process.stderr.readline():
                assert process.poll() is None, f"not there in life {life}"
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=10) as response:
                assert response.status == 200
            (private,) = (path.name for path in tmp_path.glob("pneumonia-triton.*"))
            assert len(list(SHARED_MEMORY.glob(f"{private}*"))) == 2, "not one for each instance"
            subprocess.run(["kill", "-KILL", child_of(process)], check=True)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (4, "")
    assert "the server ended by itself with code -9, 4 times in a row" in error
    nothing_left(tmp_path, private)


def nothing_left(temporary: Path, private: str) -> None:
    """No process, no file and no shared memory of a server whose private folder was temporary/private."""
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(temporary) not in running
    assert list(temporary.iterdir()) == []
    assert list(SHARED_MEMORY.glob(f"{private}*")) == []


def refused(code: int, *words: str, **arguments: object) -> None:
    """It ends with `code` at once, nothing on stdout, one message with every word, and no traceback."""
    with serve(*options(**arguments)) as process:
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, ""), error
    assert "Traceback" not in error
    assert [word for word in words if word not in error] == [], error


def test_a_taken_port(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused(4, f"127.0.0.1:{port}", "--grpc-port", bundle=bundle.path, grpc_port=port)


def test_a_model_of_drawn_images_says_so(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "models", data={"synthetic": True})
    with socket.create_server(("127.0.0.1", 0)) as other:
        refused(4, "trained on drawn images", bundle=bundle.path, http_port=other.getsockname()[1])


def test_no_bundle(tmp_path: Path) -> None:
    refused(4, f"no bundle at {tmp_path}", "make demo", bundle=tmp_path)


def test_bundle_and_release_at_once(bundle: Bundle, release: Path) -> None:
    refused(2, "--bundle and --release: give one", bundle=bundle.path, release=release)


def test_a_port_that_is_none(bundle: Bundle) -> None:
    refused(2, "--http-port", "65535", bundle=bundle.path, http_port=65536)
