"""Runs the real Triton server that the nvidia-pytriton wheel carries, as a child process on this machine."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from pneumonia import contract
from pneumonia.errors import BundleNotFound, PortTaken, ServerUnavailable, UsageError
from pneumonia.triton.drain import drain
from pneumonia.triton.hardening import hardening_flags, limit_process
from pneumonia.triton.repository import make_current
from pneumonia.triton.watch import LOOK_EVERY_S, Watch, end_group
from pneumonia.triton.wheel import assemble_backend, find_wheel, link_files, server_environment

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
_LOG_LINES = 15
_PR_SET_PDEATHSIG = 1
_SHARED_MEMORY = Path("/dev/shm")


class TritonServer:
    """A server for one model repository. `with TritonServer(...) as server: server.wait_ready()` stops it at the end.

    host: address to listen on; keep the default unless others are meant to reach it. log: file for the server's own
    output, a temporary one by default. allow_shared_memory: see `hardening_flags`. request_log: file that gets a JSON
    line for each answered image (`RequestLog`). The server ends when the thread that started it ends, even by SIGKILL,
    so start it from one that lives as long as the server is needed.
    """

    def __init__(
        self,
        repository: Path,
        http_port: int = contract.HTTP_PORT,
        grpc_port: int = contract.GRPC_PORT,
        metrics_port: int = contract.METRICS_PORT,
        host: str = "127.0.0.1",
        log: Path | None = None,
        allow_shared_memory: bool = False,
        request_log: Path | None = None,
    ) -> None:
        self.repository = repository.resolve()
        self.ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self.host = host
        self.process: subprocess.Popen[bytes] | None = None
        self._home: Path | None = None
        self.allow_shared_memory = allow_shared_memory
        self.request_log = request_log
        self._log_file = log
        self._log: Path | None = None
        self.lost: str | None = None

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def http_url(self) -> str:
        """Where the KServe v2 HTTP API answers, with its scheme."""
        return f"http://{self.address('http')}"

    def address(self, name: str) -> str:
        """host:port of http, grpc or metrics, as a client on this machine writes it."""
        return f"{self._reachable()}:{self.ports[name]}"

    def _reachable(self) -> str:
        return "127.0.0.1" if self.host in ("0.0.0.0", "") else self.host

    def start(self) -> None:
        """Start the process; `wait_ready` waits for it.

        Raises MissingPrerequisite on another platform than Linux x86-64, DependencyMissing without the wheel,
        BundleNotFound without a repository, PortTaken where a port is in use, UsageError for one port given twice.
        """
        wheel = find_wheel()
        if not (self.repository / contract.ENSEMBLE / "config.pbtxt").is_file():
            raise BundleNotFound(
                f"{self.repository}: no model repository ({contract.ENSEMBLE}/config.pbtxt is missing); "
                "write one with `pneumoctl publish`"
            )
        _check_ports(self.host, self.ports)
        self._home = Path(tempfile.mkdtemp(prefix="pneumonia-triton."))
        try:
            self._launch(wheel)
        except BaseException:
            self.stop()
            raise

    def _launch(self, wheel: Path) -> None:
        assert self._home is not None
        self._log = self._log_file or self._home / "triton.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        assemble_backend(wheel, self._home / "backends" / "python")
        # The models' byte code is written beside them: into links, and a release stays as it was published.
        link_files(self.repository, self._home / "models")
        make_current(self._home / "models")
        with self._log.open("ab") as log, _held_signals() as usual:
            self.process = subprocess.Popen(
                self._command(wheel),
                env=server_environment(wheel) | self._request_log(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=functools.partial(_before_server, ctypes.CDLL(None), os.getpid(), usual),
            )

    def _request_log(self) -> dict[str, str]:
        return {contract.REQUEST_LOG_ENV: str(self.request_log.resolve())} if self.request_log else {}

    def _command(self, wheel: Path) -> list[str]:
        assert self._home is not None
        return [
            str(wheel / "bin" / "tritonserver"),
            f"--model-repository={self._home / 'models'}",
            f"--backend-directory={self._home / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._home.name}",
            f"--http-address={self.host}", f"--http-port={self.ports['http']}",
            f"--grpc-address={self.host}", f"--grpc-port={self.ports['grpc']}",
            f"--metrics-address={self.host}", f"--metrics-port={self.ports['metrics']}",
            *hardening_flags(self.allow_shared_memory),
            # The configurations are complete; completing them would start every Python model twice.
            "--disable-auto-complete-config",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={STOP_TIMEOUT_S:.0f}",
        ]  # fmt: skip

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return once the ensemble answers and every port is open; progress on stderr.

        Raises ServerUnavailable, with the last lines of the log, where the process ends or the time runs out.
        """
        assert self.process is not None
        started = said = time.monotonic()
        while time.monotonic() - started < timeout_s:
            if self.process.poll() is not None:
                raise ServerUnavailable(
                    f"the server ended with code {self.process.returncode} while starting:\n{self.last_lines()}"
                )
            # The endpoint of the metrics opens last, and is promised with the others.
            if self._answers() and self._listens("grpc") and self._listens("metrics"):
                return
            if time.monotonic() - said >= 5:
                said = time.monotonic()
                print(f"serve: waiting for the models, {said - started:.0f} s", file=sys.stderr, flush=True)
            time.sleep(0.1)
        raise ServerUnavailable(f"the models are not ready after {timeout_s:.0f} s:\n{self.last_lines()}")

    def _answers(self) -> bool:
        # Straight to the server: a proxy that the environment names knows nothing of this machine's ports.
        connection = http.client.HTTPConnection(self._reachable(), self.ports["http"], timeout=2)
        try:
            connection.request("GET", f"/v2/models/{contract.ENSEMBLE}/ready")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _listens(self, port: str) -> bool:
        try:
            socket.create_connection((self._reachable(), self.ports[port]), timeout=2).close()
        except OSError:
            return False
        return True

    def wait(self) -> int:
        """Wait for the server to end; its exit code. It is ended where one of its processes is lost; see `lost`."""
        assert self.process is not None
        watch = Watch(self.process.pid)
        self.lost = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(LOOK_EVERY_S)
            if lost := watch.trouble():
                self.lost = lost
                end_group(self.process.pid)

    def stop(self) -> None:
        """End the server and the model processes it started; safe to call twice."""
        process, self.process = self.process, None
        try:
            if process is not None:
                self._end(process)
        finally:
            if self._home is not None:
                # A server that was killed had no time to remove its memory.
                for left in _SHARED_MEMORY.glob(f"{self._home.name}*"):
                    left.unlink(missing_ok=True)
                shutil.rmtree(self._home, ignore_errors=True)
                self._home = None

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Time to answer what is in flight, then SIGKILL to the whole group: no stub may outlive its server."""
        try:
            drain(process, (self._reachable(), self.ports["metrics"]), STOP_TIMEOUT_S)
        finally:
            end_group(process.pid)
            process.wait()

    def last_lines(self) -> str:
        """The last errors in the server's own log, or its last lines where it names none."""
        assert self._log is not None
        try:
            lines = self._log.read_text("utf-8", "replace").splitlines()
        except OSError:
            return "(no log)"
        # Triton starts a line with its severity, the month and the day.
        errors = [line for line in lines if re.match(r"E\d{4} ", line)]
        return "\n".join((errors or lines)[-_LOG_LINES:])


def _check_ports(host: str, ports: dict[str, int]) -> None:
    if len(set(ports.values())) < len(ports):
        given = ", ".join(f"--{name}-port {port}" for name, port in ports.items())
        raise UsageError(f"{given}: each needs a port of its own")
    for name, port in ports.items():
        with socket.socket() as probe:
            # As the server does, so that a port which a finished server left in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except socket.gaierror as error:
                raise UsageError(f"--host {host}: {error.strerror}; expected an IPv4 address or a host name") from error
            except (OSError, OverflowError) as error:
                raise PortTaken(
                    f"{host}:{port} cannot be used for {name} ({error}); stop what listens there or choose another "
                    f"with --{name}-port"
                ) from error


@contextlib.contextmanager
def _held_signals() -> Iterator[set[int]]:
    """Keep Ctrl-C and SIGTERM waiting: between a child's start and its being known, they would leave it behind.

    Yields the usual mask, which the child has to be given back.
    """
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield usual
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)


def _before_server(libc: ctypes.CDLL, parent: int, mask: set[int]) -> None:
    """Ask Linux to end this child when its parent dies, even by SIGKILL, so that no port stays taken."""
    limit_process()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # It died before it could be watched.
        os._exit(1)
