"""Docker for the tests of the images: what skips them, and containers as a locked-down cluster runs them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from pneumonia import __version__

STEP_IMAGE = f"pneumonia-step:{__version__}"
SERVER_IMAGE = f"pneumonia-triton:{__version__}"
ANY_USER = "54321:54321"
"""A user that /etc/passwd does not know."""
LOCKED_DOWN = ["--read-only", "--tmpfs", "/tmp", "--user", ANY_USER, "--cap-drop", "ALL"]
LOCKED_DOWN += ["--security-opt", "no-new-privileges"]


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=check)


def require_image(name: str) -> str:
    """The image's name; skips where Docker does not answer or has no such image."""
    if shutil.which("docker") is None or docker("info", check=False).returncode:
        pytest.skip("Docker does not answer")
    if docker("image", "inspect", name, check=False).returncode:
        pytest.skip(f"no image {name} on this machine; `make images` builds it")
    return name


def answers(address: str, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=4) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def logs(name: str) -> str:
    """The end of what a container wrote."""
    done = docker("logs", name)
    return (done.stdout + done.stderr)[-3000:]


@contextlib.contextmanager
def serving(arguments: list[str], ready: str, timeout_s: float, port: int = 8000) -> Iterator[tuple[str, str]]:
    """A container of `docker run arguments`, and host:port of its `port`, once the path `ready` answers there."""
    name = docker("run", "--detach", *arguments).stdout.strip()
    try:
        address = docker("port", name, str(port)).stdout.split()[0]
        until = time.monotonic() + timeout_s
        while not answers(address, ready):
            running = docker("inspect", "--format", "{{.State.Running}}", name).stdout.strip()
            assert running == "true", f"the container ended:\n{logs(name)}"
            assert time.monotonic() < until, f"not ready after {timeout_s} s:\n{logs(name)}"
            time.sleep(0.5)
        yield name, address
    finally:
        docker("rm", "--force", name, check=False)
