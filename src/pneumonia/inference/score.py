"""Bulk scoring: many images to one table, in constant memory, from where a killed run stopped."""

from __future__ import annotations

import functools
import io
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from pneumonia import contract
from pneumonia.core.cores import usable_cores
from pneumonia.core.prediction import Prediction
from pneumonia.core.preprocess import normalize, pixels
from pneumonia.errors import (
    BadInput,
    DataError,
    DependencyMissing,
    ImageError,
    NoAnswer,
    PneumoniaError,
    ServerUnavailable,
)
from pneumonia.files import printable
from pneumonia.inference.inputs import Inputs, Item
from pneumonia.inference.journal import COLUMNS, Journal, Row
from pneumonia.inference.predictor import Predictor, TensorPredictor

BATCH = contract.MAX_BATCH_SIZE
BLOCK_ROWS, BLOCK_SECONDS = 256, 2.0
"""Rows that a kill may cost; they are asked for again."""
AHEAD = 4 * BATCH
"""Images decoded, or asked for, ahead of the row that is written next."""
HELD_BYTES = 64 << 20
"""Bytes of archive members that wait in memory; one larger member waits alone."""
PROGRESS_SECONDS = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
FAILURES = 3
"""Times that a server may fail at an image before it is asked whether the image or the server is at fault."""

Result = TypeVar("Result")
Answered = tuple[Item, "Prediction | str"]
"""An image and its answer, or why there is none."""
Answerer = Callable[[Iterable[Item]], Generator[Answered, None, None]]


@dataclass(frozen=True)
class Scored:
    """What a run did. rows: in the results. errors: of them without an answer. models: every model_id that answered."""

    output: Path
    rows: int
    errors: int
    skipped: int
    models: tuple[str, ...]


def score(
    inputs: Inputs, output: Path, answerer: Answerer, settings: dict[str, Any], overwrite: bool = False
) -> Scored:
    """Answer every image of `inputs` into `output`, one row each, in order; progress on stderr.

    answerer: `in_process` or `from_server`. settings: JSON of what the answers depend on; a run that was cut off goes
    on only with equal ones. The results appear when all rows are there. Raises what `Journal` raises, DataError where
    the inputs changed since the run was cut off, and what the answerer raises; then, as after Ctrl-C, the same call
    goes on.
    """
    if next(iter(inputs), None) is None:
        left_out = f"; left out: {', '.join(map(printable, inputs.left_out))}" if inputs.skipped else ""
        raise BadInput(f"no images in {printable(' '.join(inputs.given))}{left_out}; is the folder mounted?")
    with Journal(output, settings, overwrite) as journal:
        total = inputs.count()
        items = iter(inputs)
        errors, models = _skip_finished(journal, items)
        progress = _Progress(inputs, total, journal.rows)
        block: list[Row] = []
        before, saved = journal.rows, time.monotonic()
        try:
            with closing(answerer(items)) as answers:
                for item, answer in answers:
                    block.append(_row(item, answer))
                    errors += isinstance(answer, str)
                    models.add(answer.model_id if isinstance(answer, Prediction) else "")
                    if len(block) >= BLOCK_ROWS or time.monotonic() - saved > BLOCK_SECONDS:
                        journal.append(block)
                        block = []
                        before, saved = journal.rows, time.monotonic()
                    progress.add()
        except BaseException:
            # Ctrl-C may come between the writing of a block and the taking of the next one.
            with suppress(PneumoniaError):
                journal.append(block[journal.rows - before :])
            rows = f"score: stopped, {journal.rows} rows are kept in {journal.path}"
            same = "the same command without --overwrite" if overwrite else "the same command"
            print(f"{rows}; {same} goes on from there", file=sys.stderr)
            raise
        journal.append(block)
        journal.finish()
        progress.end()
        return Scored(output, journal.rows, errors, inputs.skipped, tuple(sorted(models - {""})))


def _row(item: Item, answer: Prediction | str) -> Row:
    if isinstance(answer, str):
        return dict.fromkeys(COLUMNS, None) | {"filename": item.name, "error": answer}
    found = asdict(answer) | {"filename": item.name, "prediction": answer.label, "error": None}
    return {name: found[name] for name in COLUMNS}


def _skip_finished(journal: Journal, items: Iterator[Item]) -> tuple[int, set[str]]:
    """Pass over the inputs whose rows are safe; how many have errors, and who answered."""
    errors, models = 0, {""}
    for row in journal:
        item = next(items, None)
        if item is None or item.name != row["filename"]:
            raise DataError(
                f"{journal.path}: its next row is of {row['filename']}, the next input is "
                f"{item.name if item else 'none'}; the inputs changed since, so bring them back, or delete the "
                "file to begin anew"
            )
        errors += row["error"] is not None
        models.add(row["model_id"] or "")
    if journal.rows:
        print(f"score: going on after {journal.rows} rows of {journal.path}", file=sys.stderr)
    return errors, models


def in_process(predictor: TensorPredictor, workers: int = 0) -> Answerer:
    """Answers from a model in this process: threads decode ahead while it runs. workers: threads, 0 for one a core."""
    spec = predictor.bundle.manifest.preprocessing

    def decode(item: Item) -> Any:
        try:
            return pixels(item.read(), spec, item.name)
        except (ImageError, DependencyMissing) as error:
            return _reason(error, item)

    def answer(gray: list[Any]) -> list[Prediction | str]:
        try:
            return list(predictor.answer(normalize(np.stack(gray), spec)))
        except NoAnswer as error:
            # The others of the batch have theirs.
            return [_reason(error)] if len(gray) == 1 else [answer([one])[0] for one in gray]

    def answers(items: Iterable[Item]) -> Generator[Answered, None, None]:
        decoded = _ordered(decode, items, workers or usable_cores(), AHEAD)
        while batch := list(islice(decoded, BATCH)):
            good = [gray for _, gray in batch if not isinstance(gray, str)]
            found = iter(answer(good) if good else [])
            yield from ((item, gray if isinstance(gray, str) else next(found)) for item, gray in batch)

    return answers


def from_server(open_client: Callable[[], Predictor], concurrency: int, retry_for_s: float) -> Answerer:
    """Answers from a server, `concurrency` requests of one image in flight.

    open_client: makes a client; each thread has its own, and a new one after a failure. retry_for_s: how long a server
    that is busy (503), or that has answered before, may leave an image without an answer before ServerUnavailable ends
    the run. An image at which the server fails (500) again and again, while it answers another one, is a row with an
    error.
    """
    asker = _Asker(open_client, retry_for_s)

    def answers(items: Iterable[Item]) -> Generator[Answered, None, None]:
        yield from _ordered(asker.ask, items, concurrency, max(AHEAD, 2 * concurrency), asker.stopped.set)

    return answers


class _Asker:
    """One image at a time from any thread, again with growing pauses while the server is away."""

    def __init__(self, open_client: Callable[[], Predictor], retry_for_s: float) -> None:
        self.open_client = open_client
        self.retry_for_s = retry_for_s
        self.stopped = threading.Event()
        self.local = threading.local()
        self.answered = False
        self.away = False

    def ask(self, item: Item) -> Prediction | str:
        """Its answer, or why it has none."""
        try:
            data = item.read()
        except ImageError as error:
            return _reason(error, item)
        began, pause, failures, sound = time.monotonic(), FIRST_PAUSE_S, 0, False
        while True:
            try:
                (answer,) = self._client().predict([data])
            except (ImageError, NoAnswer, DependencyMissing) as error:
                return _reason(error, item)
            except ServerUnavailable as error:
                self.local.client = None
                if error.failed and sound:
                    return f"the server answers others and fails at this image: {error}"
                failures += error.failed
                late = time.monotonic() - began > self.retry_for_s
                # Then the next failure is the image's own.
                sound = error.failed and (late or failures >= FAILURES) and self._sound()
                there = self.answered or error.busy or (error.failed and failures < FAILURES)
                if not sound and (not error.transient or not there or late or self.stopped.is_set()):
                    raise
                self._say_away(error)
                self.stopped.wait(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                self.answered, self.away = True, False
                return answer

    def _sound(self) -> bool:
        """Whether the server answers an image that no server fails at."""
        try:
            self._client().predict([_plain()])
        except PneumoniaError:
            self.local.client = None
            return False
        self.answered = True
        return True

    def _client(self) -> Predictor:
        if getattr(self.local, "client", None) is None:
            self.local.client = self.open_client()
        client: Predictor = self.local.client
        return client

    def _say_away(self, error: ServerUnavailable) -> None:
        if not self.away:
            self.away = True
            print(f"score: {error}; trying again for {self.retry_for_s:.0f} s", file=sys.stderr, flush=True)


@functools.cache
def _plain() -> bytes:
    """An image from black to white, as PNG."""
    stream = io.BytesIO()
    Image.linear_gradient("L").save(stream, "PNG")
    return stream.getvalue()


def _reason(error: PneumoniaError, item: Item | None = None) -> str:
    """The message without the image's name, which has a column of its own."""
    return str(error).removeprefix(f"{item.name}: " if item else "").removeprefix("image 0: ")


def _ordered(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    ahead: int,
    stop: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Item, Result]]:
    """function(item) of each item on `threads` threads, in order, at most `ahead` of them waiting to be taken.

    stop: tells what still runs at the end to give up.
    """
    window: deque[tuple[Item, int, Future[Result]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            item, size = _loaded(item)
            window.append((item, size, pool.submit(function, item)))
            held += size
            while len(window) >= ahead or (held > HELD_BYTES and window):
                first, size, future = window.popleft()
                held -= size
                yield replace(first, read=_gone), future.result()
        while window:
            first, _, future = window.popleft()
            yield replace(first, read=_gone), future.result()
    finally:
        stop()
        pool.shutdown(cancel_futures=True)


def _loaded(item: Item) -> tuple[Item, int]:
    """A member of an archive with its bytes, or its error, at hand; and how many bytes that holds."""
    if not item.serial:
        return item, 0
    try:
        data = item.read()
    except ImageError as error:
        return replace(item, read=_raiser(error)), 0
    return replace(item, read=lambda: data), len(data)


def _raiser(error: ImageError) -> Callable[[], bytes]:
    def fail() -> bytes:
        raise error

    return fail


def _gone() -> bytes:
    raise AssertionError("an image is read once")


class _Progress:
    """A line on stderr every PROGRESS_SECONDS: how many, how fast, how long still."""

    def __init__(self, inputs: Inputs, total: int | None, before: int) -> None:
        self.inputs, self.total, self.before, self.done = inputs, total, before, 0
        self.started = self.said = time.monotonic()

    def add(self) -> None:
        """One more row."""
        self.done += 1
        now = time.monotonic()
        if now - self.said >= PROGRESS_SECONDS:
            self.said = now
            print(f"score: {self.before + self.done}{self._rest(now - self.started)}", file=sys.stderr, flush=True)

    def _rest(self, seconds: float) -> str:
        pace = self.done / seconds
        rate = f"images, {pace:.0f} a second"
        if self.total is not None:
            return f" of {self.total} {rate}, {(self.total - self.before - self.done) / pace:.0f} s left"
        share = self.inputs.share()
        if not share:
            return f" {rate}"
        return f" {rate}, {share:.0%} of the archive, {seconds * (1 - share) / share:.0f} s left"

    def end(self) -> None:
        """The last line."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        print(f"score: {self.done} images in {seconds:.1f} s, {self.done / seconds:.0f} a second", file=sys.stderr)
