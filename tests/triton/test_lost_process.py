"""Every process of the server, killed or frozen: it is noticed, the server ends and comes back."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.cli.demo import free_ports
from pneumonia.triton.supervise import LOST
from pneumonia.triton.watch import Watch, children
from pneumonia.triton.wheel import assemble_backend, find_wheel, server_environment
from tests.bundles import HAS_SERVER, serving, xray
from tests.cli.test_serve import child_of, first_line, options, serve
from tests.load.conftest import INFER, RAW

pytestmark = pytest.mark.skipif(not HAS_SERVER, reason="the server's wheel is for Linux x86-64")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url + INFER, xray(1), RAW), timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def wait_for_answer(url: str, server: int, within_s: float) -> None:
    """Until another server than that process answers."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not Path(f"/proc/{server}").exists() and answers(url):
            return
        time.sleep(0.1)
    pytest.fail("no other server answers")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_serve_replaces_a_server_that_lost_any_process(bundle: Bundle, how: signal.Signals) -> None:
    with serve(*options(bundle=bundle.path)) as process:
        url = first_line(process)["http"]
        count = 1 + len(children(int(child_of(process))))
        assert count == 3, "the server and two instances"
        for which in range(count):
            assert answers(url)
            server = int(child_of(process))
            os.kill([server, *sorted(children(server))][which], how)
            wait_for_answer(url, server, 20)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0
    assert error.count("starting it again") == count
    assert error.count("stands still" if how == signal.SIGSTOP else "a model's process") >= count - 1


def container(release: Path, tmp_path: Path) -> tuple[subprocess.Popen[str], dict[str, int]]:
    """What a server image starts, ready."""
    wheel = find_wheel()
    assemble_backend(wheel, tmp_path / "backends" / "python")
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    flags = [f"--{name}-port={port}" for name, port in ports.items()]
    environment = server_environment(wheel) | {"PATH": f"{wheel / 'bin'}{os.pathsep}{os.environ['PATH']}",
                                               contract.ALLOW_SYNTHETIC_ENV: "1"}  # fmt: skip
    copy = shutil.copytree(release, tmp_path / "release")
    command = [sys.executable, "-m", "pneumonia.triton.container", str(copy), *flags, "--allow-gpu-metrics=false",
               f"--backend-directory={tmp_path / 'backends'}", "--exit-timeout-secs=20"]  # fmt: skip
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not answers(f"http://127.0.0.1:{ports['http']}"):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    return process, ports


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_first_process_of_an_image_ends_when_a_model_is_lost(
    release: Path, tmp_path: Path, how: signal.Signals
) -> None:
    process, _ = container(release, tmp_path)
    (server,) = children(process.pid)
    regions = f"pneumonia-triton.{process.pid}.*"
    assert list(Path("/dev/shm").glob(regions))
    os.kill(children(server)[0], how)
    _, error = process.communicate(timeout=20)
    assert process.returncode == LOST
    assert "the server ends, to be started again" in error
    assert not Path(f"/proc/{server}").exists()
    assert not list(Path("/dev/shm").glob(regions)), "shared memory that outlives a container fills the pod's"


def test_a_kept_connection_does_not_hold_up_the_end(release: Path, tmp_path: Path) -> None:
    process, ports = container(release, tmp_path)
    kept = http.client.HTTPConnection("127.0.0.1", ports["http"])
    kept.request("POST", INFER, xray(1), RAW)
    assert kept.getresponse().read()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    kept.close()
    assert process.returncode == 0, error
    assert time.monotonic() - began < 10, "it waited for a connection that nobody uses"


def test_a_healthy_server_is_left_alone(release: Path) -> None:
    with serving(release) as server:
        assert server.process is not None
        watch = Watch(server.process.pid)
        assert [watch.trouble() for _ in range(5)] == [None] * 5
        assert len(watch._seen) == 2
