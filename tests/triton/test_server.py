"""The server process: how it starts, what it loads, how it says no, and that nothing of it stays behind."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pneumonia import contract
from pneumonia.cli.demo import free_ports
from pneumonia.errors import (
    BundleNotFound,
    DependencyMissing,
    MissingPrerequisite,
    PortTaken,
    ServerUnavailable,
    UsageError,
)
from pneumonia.release_manifest import verify_release
from pneumonia.triton.server import TritonServer
from tests.bundles import HAS_SERVER, serving

LISTEN = "0A"
IPV4_MAPPED = "0000000000000000FFFF0000"
needs_server = pytest.mark.skipif(not HAS_SERVER, reason="the server's wheel is for Linux x86-64")


def processes(word: str) -> dict[int, str]:
    """Command lines that hold `word`, by process; those that have ended and wait for their parent have none."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if word in line:
            found[int(folder.name)] = line
    return found


def gone(word: str, within_s: float) -> bool:
    """Whether the processes end in time."""
    end = time.monotonic() + within_s
    while processes(word):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder


@needs_server
def test_models_load_the_numpy_of_this_library_whatever_the_base_python_has(server: TritonServer) -> None:
    assert server.process is not None
    server_pid = str(server.process.pid)
    # Stubs are told their parent's process.
    stubs = [pid for pid, line in processes("python_backend_stub").items() if server_pid in line.split()]
    assert len(stubs) == 2
    ours = str(Path(np.__file__).parents[1])
    for pid in stubs:
        mapped = {line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/numpy" in line}
        assert mapped
        assert [path for path in mapped if not path.startswith(ours)] == []


@needs_server
def test_it_listens_on_this_machine_alone(server: TritonServer) -> None:
    listening = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, _, port = line.split()[1].partition(":")
            if line.split()[3] == LISTEN and int(port, 16) in server.ports.values():
                listening[int(port, 16)] = address
    assert set(listening) == set(server.ports.values())
    assert {address[-8:] for address in listening.values()} == {"0100007F"}, "not 127.0.0.1"
    assert {address[:-8] for address in listening.values()} <= {"", IPV4_MAPPED}


@needs_server
def test_a_served_release_stays_as_it_was_published(server: TritonServer) -> None:
    verify_release(server.repository)
    assert list(server.repository.rglob("__pycache__")) == []


@needs_server
def test_stopping_leaves_no_process_no_file_and_free_ports(release: Path, home: Path) -> None:
    with serving(release):
        assert len(processes(str(home))) == 3, "the server and a stub for each Python model"
    assert processes(str(home)) == {}
    assert list(home.iterdir()) == []
    with serving(release):  # and it can be started again
        pass


@needs_server
def test_it_ends_with_a_parent_that_is_killed(release: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pneumonia.triton.server import TritonServer\n"
        "server = TritonServer(Path(sys.argv[1]), *map(int, sys.argv[2:])); server.start(); server.wait_ready()\n"
        "print('ready', flush=True); server.wait()"
    )
    command = [sys.executable, "-c", code, str(release), *map(str, free_ports(3))]
    folder = tmp_path / "temporary"
    folder.mkdir()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": str(folder)}) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        assert len(processes(str(folder))) == 3
        parent.send_signal(signal.SIGKILL)
    assert gone(str(folder), within_s=30), processes(str(folder))


@needs_server
def test_a_server_that_dies_while_starting_says_why_and_leaves_nothing(
    release: Path, tmp_path: Path, home: Path
) -> None:
    repository = Path(shutil.copytree(release, tmp_path / "repository"))
    (repository / contract.ENSEMBLE / "1" / contract.ONNX_FILE).write_bytes(b"not a graph")
    with (
        pytest.raises(ServerUnavailable, match=r"ended with code 1 while starting:[\s\S]*model\.onnx"),
        serving(repository),
    ):
        pass
    assert processes(str(home)) == {}
    assert list(home.iterdir()) == []


@needs_server
@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_a_taken_port_is_named_with_its_option(release: Path, home: Path, name: str) -> None:
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports[name]))
        other.listen()
        with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{ports[name]} .*--{name}-port"):
            TritonServer(release, *ports.values()).start()
    assert list(home.iterdir()) == []


@needs_server
def test_one_port_for_two_services_is_refused(release: Path) -> None:
    with pytest.raises(UsageError, match=r"--http-port 9000, --grpc-port 9000.*port of its own"):
        TritonServer(release, 9000, 9000, 9001).start()


@needs_server
def test_a_host_that_does_not_exist_is_refused(release: Path) -> None:
    with pytest.raises(UsageError, match=r"--host nosuch\.invalid"):
        TritonServer(release, *free_ports(3), host="nosuch.invalid").start()


@needs_server
def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound, match=r"config\.pbtxt is missing.*pneumoctl publish"):
        TritonServer(tmp_path, *free_ports(3)).start()


@needs_server
def test_without_the_wheel_the_extra_is_named(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(DependencyMissing, match=r"pneumonia\[serve\]"):
        TritonServer(release, *free_ports(3)).start()


def test_another_platform_is_named(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(MissingPrerequisite, match=r"Linux x86-64, this is \w+ aarch64"):
        TritonServer(release).start()


@needs_server
def test_starting_never_imports_the_wheel() -> None:
    code = "import sys; from pneumonia.triton.wheel import find_wheel; find_wheel(); print('pytriton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
