"""Runs the real Triton server that the nvidia-pytriton wheel carries, as a child process on this machine."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from pneumonia import contract
from pneumonia.errors import BundleNotFound, DependencyMissing, MissingPrerequisite, PortTaken, ServerUnavailable

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
SITE_PACKAGES_ENV = "PNEUMONIA_SITE_PACKAGES"
_LOG_LINES = 15
_PR_SET_PDEATHSIG = 1


class TritonServer:
    """A server for one model repository. `with TritonServer(...) as server: server.wait_ready()` stops it at the end.

    host: address to listen on; keep the default unless others are meant to reach it. log: file for the server's own
    output, a temporary one by default.
    """

    def __init__(
        self,
        repository: Path,
        http_port: int = contract.HTTP_PORT,
        grpc_port: int = contract.GRPC_PORT,
        metrics_port: int = contract.METRICS_PORT,
        host: str = "127.0.0.1",
        log: Path | None = None,
    ) -> None:
        self.repository = repository.resolve()
        self.ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self.host = host
        self.process: subprocess.Popen[bytes] | None = None
        self._home: Path | None = None
        self._log = log

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def http_url(self) -> str:
        """Where the KServe v2 HTTP API answers, with its scheme."""
        return f"http://{self._reachable()}:{self.ports['http']}"

    def _reachable(self) -> str:
        return "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host

    def start(self) -> None:
        """Start the process; `wait_ready` waits for it.

        Raises MissingPrerequisite on another platform than Linux x86-64, DependencyMissing without the wheel,
        BundleNotFound without a repository, PortTaken where a port is in use.
        """
        wheel = _wheel()
        if not (self.repository / contract.ENSEMBLE / "config.pbtxt").is_file():
            raise BundleNotFound(
                f"{self.repository}: no model repository ({contract.ENSEMBLE}/config.pbtxt is missing); "
                "write one with `pneumoctl publish`"
            )
        for name, port in self.ports.items():
            _check_port(self.host, port, name)
        self._home = Path(tempfile.mkdtemp(prefix="pneumonia-triton."))
        self._log = self._log or self._home / "triton.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        _assemble(wheel, self._home / "backends" / "python")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(wheel),
                env=_environment(wheel),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _command(self, wheel: Path) -> list[str]:
        assert self._home is not None
        return [
            str(wheel / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={self._home / 'backends'}",
            f"--http-address={self.host}", f"--http-port={self.ports['http']}",
            f"--grpc-address={self.host}", f"--grpc-port={self.ports['grpc']}",
            f"--metrics-address={self.host}", f"--metrics-port={self.ports['metrics']}",
            # Models come from the release and from nowhere else while it runs.
            "--model-control-mode=none",
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=5",
        ]  # fmt: skip

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return once the ensemble answers; progress on stderr.

        Raises ServerUnavailable, with the last lines of the log, where the process ends or the time runs out.
        """
        assert self.process is not None
        url = f"{self.http_url}/v2/models/{contract.ENSEMBLE}/ready"
        started = said = time.monotonic()
        while time.monotonic() - started < timeout_s:
            if self.process.poll() is not None:
                raise ServerUnavailable(
                    f"the server ended with code {self.process.returncode} while starting:\n{self._last_lines()}"
                )
            if _answers(url):
                return
            if time.monotonic() - said >= 5:
                said = time.monotonic()
                print(f"serve: waiting for the models, {said - started:.0f} s", file=sys.stderr, flush=True)
            time.sleep(0.1)
        raise ServerUnavailable(f"the models are not ready after {timeout_s:.0f} s:\n{self._last_lines()}")

    def wait(self) -> int:
        """Wait for the process to end; its exit code."""
        assert self.process is not None
        return self.process.wait()

    def stop(self) -> None:
        """End the server and the model processes it started; safe to call twice."""
        process, self.process = self.process, None
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            # The stubs share the server's process group; none may outlive it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    def _last_lines(self) -> str:
        assert self._log is not None
        try:
            return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:])
        except OSError:
            return "(no log)"


def _wheel() -> Path:
    """The folder tritonserver/ of the wheel, found without importing it."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise MissingPrerequisite(
            f"the local server runs on Linux x86-64, this is {sys.platform} {platform.machine()}; "
            "run the server's container image instead"
        )
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise DependencyMissing("no Triton server here: pip install 'pneumonia[serve]'")
    return Path(next(iter(spec.submodule_search_locations))) / "tritonserver"


def _assemble(wheel: Path, target: Path) -> None:
    """The Python backend beside the stub of the running Python, as links to the wheel's files."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise MissingPrerequisite(f"the wheel's server has no Python backend for Python {version}; use 3.10 to 3.12")
    target.mkdir(parents=True)
    for source in (*(wheel / "backends" / "python").glob("*.[sp]*"), stub):
        (target / source.name).symlink_to(source)


def _environment(wheel: Path) -> dict[str, str]:
    """The child's environment: the wheel's libraries, libpython, and where the models find their packages."""
    site = wheel.parents[1]
    libraries = [str(site / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR") or "")]
    package_root = Path(__file__).resolve().parents[2]
    folders = [str(package_root), *(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))]
    present = os.environ.get("LD_LIBRARY_PATH")
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *([present] if present else [])]),
        SITE_PACKAGES_ENV: os.pathsep.join(dict.fromkeys(folders)),
        # A release may lie on a read-only disk, and stays as it was published anyway.
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _check_port(host: str, port: int, name: str) -> None:
    with socket.socket() as probe:
        # As the server does, so that a port which a finished server left in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(
                f"{host}:{port} cannot be used for {name} ({error.strerror}); stop what listens there or choose "
                f"another with --{name}-port"
            ) from error


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _die_with_parent() -> None:
    """Ask Linux to end this child when its parent dies, even by SIGKILL, so that no port stays taken."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
