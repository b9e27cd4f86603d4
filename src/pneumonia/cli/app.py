"""`pneumoctl`: registers the command groups; imports nothing heavy and catches errors in one place."""

from __future__ import annotations

import sys

import typer

from pneumonia import __version__
from pneumonia.errors import PneumoniaError, StorageError
from pneumonia.files import NO_ROOM

app = typer.Typer(
    name="pneumoctl",
    help="Train, check, export and serve a chest X-ray pneumonia classifier. Not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"pneumoctl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Train, check, export and serve a chest X-ray pneumonia classifier. Not a medical device."""


def main() -> None:
    """Run the command line; the library's own errors become one message on stderr and their exit code."""
    from pneumonia.cli import register

    register(app)
    try:
        app()
    except PneumoniaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        # Temporary folders fill up as well, in the middle of any library.
        if error.errno not in NO_ROOM:
            raise
        print(f"error: {error.filename or 'writing'}: {error.strerror}; free space and try again", file=sys.stderr)
        sys.exit(StorageError.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
