"""What every pipeline step shares: its settings, and a way to say why it failed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pneumonia import __version__, contract
from pneumonia.errors import ConfigError, DependencyMissing, PneumoniaError, UsageError
from pneumonia.files import write_json

ERROR_DIR_ENV = "PNEUMONIA_STEP_ERRORS"
"""Folder for <step>.json with the reason and exit code of a failed step; kfp.local itself keeps neither."""


@contextlib.contextmanager
def step(name: str, library_version: str) -> Iterator[None]:
    """Run a step's body: the library's errors become one line on stderr and their exit code.

    Anything else keeps its traceback. Where PNEUMONIA_STEP_ERRORS is set, reason and exit code are left there too.
    Raises SystemExit with the exit code of a PneumoniaError, 4 for a missing package, 130 for an interrupt.
    """
    try:
        if library_version != __version__:
            raise UsageError(
                f"the pipeline asks for pneumonia {library_version}, this step has {__version__}; compile the pipeline "
                "again, or use the step image of its version"
            )
        yield
    except PneumoniaError as error:
        _fail(name, str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "pneumonia").partition(".")[0] == "pneumonia":
            _record(name, f"{type(error).__name__}: {error}", 1)
            raise
        missing = DependencyMissing(f"{error.name} is not installed; pip install 'pneumonia[train,pipelines,serve]'")
        _fail(name, str(missing), missing.exit_code)
    except KeyboardInterrupt:
        _fail(name, "interrupted", 130)
    except Exception as error:
        _record(name, f"{type(error).__name__}: {error}", 1)
        raise


def _record(name: str, reason: str, exit_code: int) -> None:
    if folder := os.environ.get(ERROR_DIR_ENV):
        write_json(Path(folder) / f"{name}.json", {"step": name, "reason": reason, "exit_code": exit_code})


def _fail(name: str, reason: str, exit_code: int) -> None:
    _record(name, reason, exit_code)
    print(f"error: {reason}", file=sys.stderr, flush=True)
    sys.exit(exit_code)


def settings_of(experiment: str, source: str, data_root: str, overrides: Sequence[str]) -> list[str]:
    """The pipeline's parameters as configuration overrides.

    Raises ConfigError where `overrides` sets what has a parameter of its own.
    """
    owned = {"experiment": "experiment", "data": "source", "data.root": "data_root"}
    for override in overrides:
        if parameter := owned.get(override.partition("=")[0]):
            raise ConfigError(f"{override}: set the pipeline's parameter {parameter} instead")
    root = [f"data.root={data_root}"] if data_root else []
    return [f"experiment={experiment}", f"data={source}", *root, *overrides]


def show_evaluation(evaluation: Path, metrics: Any, report: Path) -> None:
    """Give the pipeline's user interface the test figures (a kfp Metrics artifact) and the report."""
    figures = json.loads((evaluation / contract.METRICS_FILE).read_text("utf-8"))["test"]
    for name, figure in figures.items():
        if figure["value"] is not None:
            metrics.log_metric(f"test_{name}", figure["value"])
    shutil.copyfile(evaluation / contract.REPORT_FILE, report)
