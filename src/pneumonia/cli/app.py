"""`pneumoctl`: registers the command groups; imports nothing heavy and catches errors in one place."""

from __future__ import annotations

import errno
import sys

import typer

from pneumonia import __version__
from pneumonia.errors import PneumoniaError, StorageError
from pneumonia.files import NO_ROOM, printable

app = typer.Typer(
    name="pneumoctl",
    help="Train, check, export and serve a chest X-ray pneumonia classifier. Not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors that say that a place is not for this user, or no place at all, whichever call meets them."""


def _version(value: bool) -> None:
    if value:
        typer.echo(f"pneumoctl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Train, check, export and serve a chest X-ray pneumonia classifier. Not a medical device."""


def _complain(message: str) -> None:
    """The one line, or few, that say what is wrong. Names of files cannot move the cursor in it."""
    print(f"error: {chr(10).join(map(printable, message.splitlines()))}", file=sys.stderr)


def main() -> None:
    """Run the command line; the library's own errors become one message on stderr and their exit code."""
    from pneumonia.cli import register

    register(app)
    try:
        app()
    except PneumoniaError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        # Temporary folders fill up as well, in the middle of any library.
        if error.errno in NO_ROOM:
            _complain(f"{error.filename or 'writing'}: {error.strerror}; free space and try again")
        elif error.errno in _NO_PLACE and error.filename is not None:
            _complain(f"{error.filename}: {error.strerror}; choose another place, or have it made accessible")
        else:
            raise
        sys.exit(StorageError.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
