"""Runs of the command line and of the library in processes of their own, forked from one with its imports done."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
# A fork of a process that has imported everything starts in a moment, where Python with PyTorch takes seconds.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.imports"])


@dataclass(frozen=True)
class Done:
    """A finished command line."""

    code: int | None
    out: str
    err: str

    def fails(self, code: int, words: str) -> None:
        """It ended with `code`, nothing on stdout, `words` on stderr, and no traceback."""
        assert self.code == code, self.err
        assert self.out == ""
        assert "Traceback" not in self.err
        assert words in self.err, self.err

    def succeeds(self, words: str = "") -> None:
        """It ended with 0 and an answer on stdout, `words` on stderr and no traceback."""
        assert self.code == 0, self.err
        assert self.out
        assert "Traceback" not in self.err
        assert words in self.err, self.err


@dataclass
class Running:
    """A command line under way."""

    process: ForkServerProcess
    folder: Path

    def wait(self, timeout_s: float = 120) -> Done:
        """Its end."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, "still running"
        texts = [(self.folder / name).read_text("utf-8", "surrogateescape") for name in ("out", "err")]
        return Done(self.process.exitcode, *texts)


def start(function: Callable[..., Any], *arguments: Any) -> ForkServerProcess:
    """function(*arguments) in a child."""
    # daemon: one that hangs must not outlive a failed test.
    process = _context.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def pneumoctl(folder: Path, *arguments: object, **options: Any) -> Done:
    """Run the command line in `folder`; options as for `begin`."""
    return begin(folder, *arguments, **options).wait()


def begin(
    folder: Path,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    restricted: bool = False,
    before: Callable[[], None] | None = None,
) -> Running:
    """Start the command line in `folder`.

    restricted: permissions count even for root. before: called in the child first.
    """
    streams = folder / f".streams-{len(list(folder.glob('.streams-*')))}"
    streams.mkdir(parents=True)
    for name in ("out", "err"):
        (streams / name).touch()
    words = ["pneumoctl", *map(str, arguments)]
    return Running(start(_command, folder, words, streams, dict(environment or {}), restricted, before), streams)


def _command(
    folder: Path,
    words: Sequence[str],
    streams: Path,
    environment: dict[str, str],
    restricted: bool,
    before: Callable[[], None] | None,
) -> None:
    for number, name in ((1, "out"), (2, "err")):
        with (streams / name).open("wb") as stream:
            os.dup2(stream.fileno(), number)
    os.chdir(folder)
    os.environ.update(environment)
    if before is not None:
        before()
    sys.argv = list(words)
    from pneumonia.cli.app import main

    with unprivileged() if restricted else contextlib.nullcontext():
        main()


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Permissions count for this thread even where it is root's; without effect for others."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice
    libc.capget(header, sets)
    usual = sets[0]
    try:
        sets[0] = usual & ~(1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH)
        if libc.capset(header, sets) != 0:
            raise OSError(ctypes.get_errno(), "capset")
        yield
    finally:
        sets[0] = usual
        libc.capset(header, sets)
