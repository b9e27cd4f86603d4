"""`pneumoctl score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from pneumonia import contract

if TYPE_CHECKING:
    from pneumonia.inference.predictor import TensorPredictor

MODES = ("onnx", "pytorch", "triton")


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("score")(score)


def score(
    inputs: list[str] = typer.Argument(
        ..., metavar="INPUT...", help="Images, folders, quoted patterns, .zip, .tar(.gz), or @list: one path a line."
    ),
    output: Path = typer.Option(
        ..., "--output", "-o", help="Results; the name's end is the format: .parquet, .csv, .jsonl."
    ),
    mode: str = typer.Option("onnx", help=f"What answers: {', '.join(MODES)}."),
    bundle: Path | None = typer.Option(None, help="Bundle folder; default: $PNEUMONIA_BUNDLE or ./models."),
    device: str = typer.Option("auto", help=f"Where it runs: {', '.join(contract.DEVICES)}."),
    url: str | None = typer.Option(None, help="Server for --mode triton, host:port; default: this machine."),
    protocol: str = typer.Option("http", help=f"For --mode triton: {', '.join(contract.PROTOCOLS)}."),
    timeout: float = typer.Option(30.0, min=0.1, help="Seconds to wait for a server's answer."),
    concurrency: int = typer.Option(8, min=1, max=256, help="Requests in flight, for --mode triton."),
    retry_for: float = typer.Option(120.0, min=0, help="Seconds to ask a server again that was lost or is busy."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace results, and begin a cut-off run anew."),
) -> None:
    """Score many images into one table, a row each: filename, prediction, confidence, probability, threshold, model_id,
    error.

    A run that was stopped or killed goes on where it was when the same command is given again. An image that cannot be
    read, or has no answer, becomes a row with its error, and the exit code is 3. Prints one JSON line.
    """
    import sys

    from pneumonia.errors import ImageError, UsageError
    from pneumonia.files import printable
    from pneumonia.inference.inputs import Inputs
    from pneumonia.inference.journal import check_output
    from pneumonia.inference.predictor import open_predictor
    from pneumonia.inference.score import from_server, in_process
    from pneumonia.inference.score import score as run_score

    if mode not in MODES:
        raise UsageError(f"mode {mode!r}: not one of {', '.join(MODES)}")
    check_output(output, overwrite)
    given = Inputs(inputs)
    predictor = open_predictor(mode, bundle, device, url, protocol, timeout)
    settings: dict[str, Any] = {"inputs": inputs, "mode": mode, "model_id": None}
    if mode == "triton":
        answerer = from_server(
            lambda: open_predictor(mode, None, device, url, protocol, timeout), concurrency, retry_for
        )
    else:
        local = cast("TensorPredictor", predictor)
        settings["model_id"] = local.bundle.model_id
        answerer = in_process(local)
    done = run_score(given, output, answerer, settings, overwrite)
    if done.skipped:
        some = ", ".join(map(printable, given.left_out))
        print(f"score: files left out because they are no images: {done.skipped}, such as {some}", file=sys.stderr)
    if len(done.models) > 1:
        print(f"warning: {len(done.models)} models answered: {', '.join(done.models)}", file=sys.stderr)
    print(json.dumps({"path": str(output), "rows": done.rows, "errors": done.errors}))
    if done.errors:
        print(f"score: images without an answer: {done.errors}; the column error says why", file=sys.stderr)
        raise typer.Exit(ImageError.exit_code)
