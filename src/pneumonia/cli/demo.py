"""`pneumoctl demo`: the whole way on this machine, from X-rays to answers of every kind of server."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pneumonia.core.prediction import Prediction
    from pneumonia.pipelines.run import PipelineRun

MAX_CONFIDENCE_GAP = 1e-3
"""Largest difference in confidence that two modes may show on one image."""

_OVERRIDES = typer.Argument(None, metavar="[KEY=VALUE]...", help="Configuration, such as training.num_train_epochs=5.")
_MADE_AGAIN = ("fetch/fetched", "prepare/prepared", "train/checkpoints", "train/weights")
"""What a run leaves that only the next step needed, by task and name."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("demo")(demo)


def demo(
    overrides: list[str] | None = _OVERRIDES,
    data: Path | None = typer.Option(None, help="Folder of X-rays; without it, phantoms are drawn."),
    keep: bool = typer.Option(False, "--keep", help="Keep drawn images, the pixel cache and checkpoints of the run."),
    output: Path = typer.Option(Path("models"), help="Folder of the final bundle."),
    release_root: Path = typer.Option(Path(), help="Folder that gets releases/<digest>."),
    runs: Path = typer.Option(Path("pipeline_runs"), help="Folder that gets one folder a run."),
    engine: str = typer.Option("subprocess", help="What runs the steps: subprocess, or docker (`make images` first)."),
) -> None:
    """Run the pipeline, serve its release, and ask about one NORMAL and one PNEUMONIA image in every mode.

    The images are the first of each class in the test split. Exits 5 where the gate refuses or two modes differ by
    more than 0.001 in confidence.
    """
    from pneumonia.cli.pipeline import pipeline_arguments
    from pneumonia.pipelines.run import run_pipeline

    began = time.monotonic()
    arguments = pipeline_arguments(overrides or [], data=data, experiment=None)
    arguments["release_root"] = str(release_root.resolve())
    run = run_pipeline(arguments, runs=runs, output=output, engine=engine)
    asked = ask(run, first_of_each_class(run))
    if not keep:
        for made in [path for name in _MADE_AGAIN for path in run.path.glob(f"*/{name}")]:
            made.unlink() if made.is_file() else shutil.rmtree(made)
        shutil.rmtree(run.fetched)
    seconds = {**run.seconds, **asked.seconds, "total": time.monotonic() - began}
    print(render(run, asked, seconds))
    asked.require_agreement()


@dataclass(frozen=True)
class Example:
    """One test image and what it really is."""

    name: str
    truth: str
    data: bytes


@dataclass
class Answers:
    """What every mode said. by_mode: answers in the order of `examples`. missing: why a mode is not available."""

    examples: Sequence[Example]
    by_mode: dict[str, list[Prediction]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def require_agreement(self) -> None:
        """Raise ParityRefused where two modes give another label, or confidences more than 1e-3 apart."""
        from pneumonia.errors import ParityRefused

        for position, example in enumerate(self.examples):
            answers = {mode: said[position] for mode, said in self.by_mode.items()}
            confidences = [answer.confidence for answer in answers.values()]
            labels = {answer.label for answer in answers.values()}
            if len(labels) > 1 or max(confidences) - min(confidences) > MAX_CONFIDENCE_GAP:
                said = ", ".join(f"{mode} {answer.label} {answer.confidence:.4f}" for mode, answer in answers.items())
                raise ParityRefused(
                    f"{example.name}: {said}; the modes may differ by {MAX_CONFIDENCE_GAP:g} in confidence. "
                    "Report this with the bundle's digest"
                )


def first_of_each_class(run: PipelineRun) -> list[Example]:
    """The first NORMAL and the first PNEUMONIA image of the test split, chosen by position and not by any answer."""
    from pneumonia import contract
    from pneumonia.data.prepare import load_prepared
    from pneumonia.data.sources import SOURCE_FILE

    source = json.loads((run.fetched / SOURCE_FILE).read_text("utf-8"))
    # An absolute root stands for itself; "." is the fetched folder.
    root = run.fetched / source["root"]
    prepared = load_prepared(run.prepared)
    rows = prepared.indices("test")
    examples = []
    for index, label in enumerate(contract.LABELS):
        path = root / prepared.index["path"][int(rows[prepared.labels[rows] == index][0])]
        examples.append(Example(path.name, label, path.read_bytes()))
    return examples


def ask(run: PipelineRun, examples: Sequence[Example]) -> Answers:
    """Ask every mode that this machine has; the server is up only meanwhile."""
    answers = Answers(examples)
    for mode in ("onnx", "pytorch"):
        _ask_one(answers, mode, run, mode=mode)
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):
        with _server(run, answers) as urls:
            for protocol, url in urls.items():
                _ask_one(answers, f"triton {protocol}", run, mode="triton", url=url, protocol=protocol)
    else:
        reason = f"the server's wheel is for Linux x86-64, this is {sys.platform} {platform.machine()}"
        answers.missing.update({"triton http": reason, "triton grpc": reason})
    _ask_one(answers, "tensorrt", run, mode="tensorrt")
    return answers


def _ask_one(
    answers: Answers, name: str, run: PipelineRun, mode: str, url: str | None = None, protocol: str = "http"
) -> None:
    from pneumonia.errors import BundleError, DependencyMissing, DeviceUnavailable
    from pneumonia.inference.predictor import open_predictor

    began = time.monotonic()
    print(f"demo: asking {name}", file=sys.stderr, flush=True)
    bundle = None if mode == "triton" else run.bundle.path
    # What is asked for here is not required of a machine: no GPU, an extra that is not installed. For TensorRT the
    # bundle of a machine without a GPU has no engine either.
    absent = (DependencyMissing, DeviceUnavailable, *((BundleError,) if mode == "tensorrt" else ()))
    try:
        predictor = open_predictor(mode=mode, bundle=bundle, device="auto", url=url, protocol=protocol)
        answers.by_mode[name] = predictor.predict([example.data for example in answers.examples])
    except absent as error:
        answers.missing[name] = str(error)
        return
    answers.seconds[name] = time.monotonic() - began


@contextlib.contextmanager
def _server(run: PipelineRun, answers: Answers) -> Iterator[dict[str, str]]:
    """The published release, served on free ports of this machine; yields {protocol: URL}."""
    from pneumonia.triton.server import TritonServer

    began = time.monotonic()
    print("demo: starting the server on the published release", file=sys.stderr, flush=True)
    http, grpc, metrics = free_ports(3)
    server = TritonServer(
        run.release, http_port=http, grpc_port=grpc, metrics_port=metrics, log=run.path / "triton.log"
    )
    with server:
        server.wait_ready()
        answers.seconds["server start"] = time.monotonic() - began
        yield {"http": f"127.0.0.1:{http}", "grpc": f"127.0.0.1:{grpc}"}
        stopping = time.monotonic()
    answers.seconds["server stop"] = time.monotonic() - stopping


def free_ports(count: int) -> list[int]:
    """Different TCP ports of the loopback interface that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]


def render(run: PipelineRun, answers: Answers, seconds: Mapping[str, float]) -> str:
    """The demo's result as plain text tables."""
    metrics, verdict = run.metrics(), run.verdict()
    synthetic = "  SYNTHETIC: drawn images, of no use for patients" if metrics["synthetic"] else ""
    threshold = metrics["threshold"]
    parts = [
        f"Model {run.bundle.model_id}{synthetic}",
        _table(("image", "truth", "mode", "prediction", "confidence"), _answer_rows(answers)),
        *(f"{mode}: not available here: {reason}" for mode, reason in answers.missing.items()),
        f"Test: {metrics['images']} images of {metrics['patients_count']} patients that training never saw, "
        f"PNEUMONIA from P >= {threshold:.4f}",
        _table(("figure", "test", "95 % interval", "required"), _metric_rows(metrics["test"], verdict)),
        _table(("part", "seconds"), [(name, f"{value:.1f}") for name, value in seconds.items()]),
        _table(
            ("", "path"),
            [("report", str(run.report)), ("bundle", str(run.bundle.path.resolve())), ("release", str(run.release))],
        ),
    ]
    return "\n\n".join(parts)


def _answer_rows(answers: Answers) -> list[Sequence[str]]:
    return [
        (example.name, example.truth, mode, said[position].label, f"{said[position].confidence:.4f}")
        for position, example in enumerate(answers.examples)
        for mode, said in answers.by_mode.items()
    ]


def _metric_rows(test: Mapping[str, Any], verdict: Mapping[str, Any]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for name, figure in test.items():
        asked = verdict.get(name, {})
        bounds = [f"{sign} {asked[key]:.2f}" for sign, key in ((">=", "least"), ("<=", "most")) if key in asked]
        value = "-" if figure["value"] is None else f"{figure['value']:.4f}"
        low, high = figure.get("low"), figure.get("high")
        rows.append((name, value, "" if low is None or high is None else f"{low:.3f} to {high:.3f}", *(bounds or [""])))
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, tuple("-" * width for width in widths), *rows)
    ]
    return "\n".join(lines)
