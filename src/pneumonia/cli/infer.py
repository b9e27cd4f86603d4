"""`pneumoctl infer` and `pneumoctl serve`."""

from __future__ import annotations

import glob
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pneumonia import contract

if TYPE_CHECKING:
    from pneumonia.triton.server import TritonServer

_BUNDLE = typer.Option(None, help="Bundle folder; default: $PNEUMONIA_BUNDLE or ./models.")
_RESTARTS = 3
_STEADY_S = 1.0
"""A server that ran for this long before it died counts as well again."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("infer")(infer)
    app.command("serve")(serve)


def infer(
    images: list[str] = typer.Argument(..., metavar="IMAGE...", help="JPEG, PNG or DICOM files; - for standard input."),
    mode: str = typer.Option("onnx", help=f"What answers: {', '.join(contract.INFER_MODES)}."),
    bundle: Path | None = _BUNDLE,
    device: str = typer.Option("auto", help=f"Where it runs: {', '.join(contract.DEVICES)}."),
    url: str | None = typer.Option(None, help="Server for --mode triton, host:port; default: this machine."),
    protocol: str = typer.Option("http", help=f"For --mode triton: {', '.join(contract.PROTOCOLS)}."),
    timeout: float = typer.Option(30.0, min=0.1, help="Seconds to wait for a server's answer."),
    retry_for: float = typer.Option(0.0, min=0, help="Seconds to ask a server again that is busy or away."),
) -> None:
    """Say NORMAL or PNEUMONIA for each image, with a calibrated confidence.

    One JSON object a line, indented where one image is asked for on a terminal. An image that cannot be read is
    reported on stderr, the others are answered, and the exit code is 3. So is one for which the model gives no number,
    with exit code 1.
    """
    from pneumonia.core.image import read_image, read_stream
    from pneumonia.errors import DependencyMissing, ImageError, NoAnswer
    from pneumonia.files import printable
    from pneumonia.inference.predictor import open_predictor

    predictor = open_predictor(mode, bundle, device, url, protocol, timeout, retry_for)
    # A caller may have closed standard output.
    indent = 2 if len(images) == 1 and sys.stdout is not None and sys.stdout.isatty() else None
    code = 0
    for given in images:
        path = Path(given)
        try:
            data = read_stream(sys.stdin.buffer, "-") if given == "-" else read_image(path)
            (answer,) = predictor.predict([data])
        except (ImageError, NoAnswer, DependencyMissing) as error:
            # The reader below knows an image by its place only.
            reason = str(error).removeprefix(f"{path}: ").removeprefix("image 0: ")
            print(f"error: {printable(given)}: {printable(reason)}{_hint(given)}", file=sys.stderr)
            code = max(code, error.exit_code)
            continue
        # A name that is not UTF-8 cannot be printed as it is.
        name = path.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        result = {"filename": name, "mode": mode, "prediction": answer.label,
                  "confidence": f"{answer.confidence:.4f}"}  # fmt: skip
        # Of control characters JSON escapes only the first 32.
        print(json.dumps(result, indent=indent, ensure_ascii=printable(name) != name), flush=True)
    if code:
        raise typer.Exit(code)


def _hint(given: str) -> str:
    """What else to use for what is no file."""
    if "://" in given:
        return "; download it first: curl -fsS URL | pneumoctl infer -"
    if os.path.isdir(given) or (glob.has_magic(given) and not os.path.exists(given)):
        return "; for folders and patterns use: pneumoctl score INPUT -o results.csv"
    return ""


def serve(
    bundle: Path | None = _BUNDLE,
    release: Path | None = typer.Option(None, help="Serve this release, as `pneumoctl publish` wrote it, instead."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; 0.0.0.0 lets other machines in."),
    http_port: int = typer.Option(contract.HTTP_PORT, min=1, max=65535, help="KServe v2 over HTTP."),
    grpc_port: int = typer.Option(contract.GRPC_PORT, min=1, max=65535, help="KServe v2 over gRPC."),
    metrics_port: int = typer.Option(contract.METRICS_PORT, min=1, max=65535, help="Prometheus metrics."),
    log_file: Path | None = typer.Option(None, help="The server's own log; default: a temporary file."),
    request_log: Path | None = typer.Option(None, help="Append a JSON line here for each answered image; no image."),
    allow_shared_memory: bool = typer.Option(False, help="Let clients of this machine pass images in shared memory."),
) -> None:
    """Serve a bundle with Triton until Ctrl-C. Prints one JSON line once it answers.

    A server that dies is started again, up to three times in a row.
    """
    import tempfile

    from pneumonia.errors import UsageError
    from pneumonia.triton.server import TritonServer

    if bundle is not None and release is not None:
        raise UsageError("--bundle and --release: give one of them")
    if request_log is not None and request_log.is_dir():
        raise UsageError(f"--request-log {request_log}: is a folder; give a file in it")
    # A service manager's stop is a clean end too, and so is a terminal that is closed.
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="pneumonia-repository.") as temporary:
            repository = _repository(bundle, release, Path(temporary))
            _serve(TritonServer(repository, http_port, grpc_port, metrics_port, host, log_file,
                                allow_shared_memory, request_log))  # fmt: skip
    except KeyboardInterrupt:
        print("serve: stopped", file=sys.stderr)


def _repository(bundle: Path | None, release: Path | None, temporary: Path) -> Path:
    """The release, its files verified, or a repository written from the bundle."""
    from pneumonia.bundle import open_bundle
    from pneumonia.release_manifest import verify_release
    from pneumonia.triton.repository import write_repository

    if release is not None:
        synthetic = verify_release(release)["synthetic"]
    else:
        opened = open_bundle(bundle)
        synthetic = opened.manifest.synthetic
        write_repository(opened, temporary)
    if synthetic:
        print("serve: this model was trained on drawn images and means nothing for a patient", file=sys.stderr)
    return release or temporary


def _serve(server: TritonServer) -> None:
    """Run until interrupted; raise ServerUnavailable where the server keeps ending by itself."""
    from pneumonia.errors import ServerUnavailable

    died, announced = 0, False
    while True:
        with server:
            server.wait_ready()
            began = time.monotonic()
            # Before the line that callers wait for: what they do next may end this process.
            print("serve: ready, Ctrl-C ends it", file=sys.stderr, flush=True)
            if not announced:
                ready = {"model": contract.ENSEMBLE, "http": server.http_url, "grpc": server.address("grpc"),
                         "metrics": f"http://{server.address('metrics')}/metrics"}  # fmt: skip
                print(json.dumps(ready), flush=True)
                announced = True
            code = server.wait()
            died = died + 1 if time.monotonic() - began < _STEADY_S else 1
            problem = server.lost or f"the server ended by itself with code {code}"
            if died > _RESTARTS:
                raise ServerUnavailable(f"{problem}, {died} times in a row; its last lines:\n{server.last_lines()}")
            print(f"serve: {problem}; starting it again. Its last lines:\n{server.last_lines()}", file=sys.stderr)
