"""What every pipeline step stands in: its secrets, its version, and how it says why it failed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pneumonia import __version__
from pneumonia.errors import DependencyMissing, PneumoniaError, UsageError
from pneumonia.files import write_json

ERROR_DIR_ENV = "PNEUMONIA_STEP_ERRORS"
"""Folder for <step>.json with the reason and exit code of a failed step; kfp.local itself keeps neither."""
SECRETS_DIR = Path("/var/run/secrets/pneumonia")
"""Where a cluster mounts the steps' secrets, a folder each with a file a key.

As files and not as the container's environment: Kubeflow's launcher runs in the same container, and would take the
product's AWS_* for those of its own store of artifacts.
"""
_TAKEN = ("AWS_", "HF_", "KAGGLE_", "MLFLOW_", "PNEUMONIA_")
"""Keys of these prefixes become environment variables of the step's own process."""


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
        take_secrets()
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


def take_secrets(folder: Path | None = None) -> None:
    """Put the keys of the mounted secrets into this process's environment; what is set there already stays."""
    for file in sorted((folder or SECRETS_DIR).glob("*/*")):
        if file.name.startswith(_TAKEN) and file.is_file():
            os.environ.setdefault(file.name, file.read_text("utf-8").rstrip("\n"))
