"""A Triton server, or anything that speaks the KServe v2 protocol and serves our ensemble."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from pneumonia import contract
from pneumonia.core.prediction import Prediction
from pneumonia.errors import DependencyMissing, ImageError, NoAnswer, PneumoniaError, ServerUnavailable, UsageError

_DEFAULT_PORTS = {"http": contract.HTTP_PORT, "grpc": contract.GRPC_PORT}
_SCHEMES = {"http": ("http", "https"), "grpc": ("grpc", "grpcs")}
_ENSEMBLE_PREFIX = f"in ensemble '{contract.ENSEMBLE}', "
_NOBODY_THERE = ("failed to connect", "errors resolving")
"""gRPC says UNAVAILABLE both for a busy server and for none."""
_BUSY = ("429", "502", "503", "504", "StatusCode.UNAVAILABLE", "StatusCode.RESOURCE_EXHAUSTED")
"""What a full queue, or a gateway before one, answers."""
_FAILED = ("500", "StatusCode.INTERNAL")
_NO_ROOM = "shared memory pool"
"""Triton's own words, with status 500, where requests together are too much for its /dev/shm: no fault of the image."""
_REFUSED = ("401", "403", "StatusCode.UNAUTHENTICATED", "StatusCode.PERMISSION_DENIED")
CONNECT_TIMEOUT_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""Between two attempts; each pause is twice the one before, less a random part so that clients do not come together."""
_CHANNEL = [
    # The HTTP client asks no proxy either, and a proxy of the environment knows nothing of this machine's ports.
    ("grpc.enable_http_proxy", 0),
    # A batch of X-rays is larger than gRPC's usual 4 MiB. -1: no limit.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]


class TritonPredictor:
    """Sends encoded images to the ensemble over HTTP or gRPC.

    url: [http[s]://]host:port, by default the protocol's standard port on this machine. timeout_s: for one request.
    retry_for_s: how long a request is tried again, with growing pauses, where the server is busy or away.
    """

    def __init__(self, url: str | None, protocol: str, timeout_s: float, retry_for_s: float = 0.0) -> None:
        self.protocol = protocol
        self.timeout_s = timeout_s
        self.retry_for_s = retry_for_s
        self.target, secure = _parse(url or f"127.0.0.1:{_DEFAULT_PORTS[protocol]}", protocol)
        if protocol == "http":
            import tritonclient.http as module

            self.client = module.InferenceServerClient(
                self.target, ssl=secure, connection_timeout=min(CONNECT_TIMEOUT_S, timeout_s), network_timeout=timeout_s
            )
        else:
            import tritonclient.grpc as module

            self.client = module.InferenceServerClient(self.target, ssl=secure, channel_args=_CHANNEL)
        self.module = module

    def predict(self, images: Sequence[bytes]) -> list[Prediction]:
        """See `Predictor`. More images than one request may carry go in several."""
        answers: list[Prediction] = []
        for start in range(0, len(images), contract.MAX_BATCH_SIZE):
            answers += self._patiently(images[start : start + contract.MAX_BATCH_SIZE])
        return answers

    def _patiently(self, images: Sequence[bytes]) -> list[Prediction]:
        """`_request`, again while that may help: an answer changes nothing on the server, so twice does no harm."""
        end = time.monotonic() + self.retry_for_s
        pause = FIRST_PAUSE_S
        while True:
            try:
                return self._request(images)
            except ServerUnavailable as error:
                wait = random.uniform(0.5, 1.0) * pause
                if not error.transient or time.monotonic() + wait > end:
                    raise
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _request(self, images: Sequence[bytes]) -> list[Prediction]:
        tensor = self.module.InferInput(contract.ENSEMBLE_INPUT, [len(images), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[data] for data in images], np.object_))
        # Only gRPC takes a limit with the request; over HTTP it belongs to the connection.
        limit = {"client_timeout": self.timeout_s} if self.protocol == "grpc" else {}
        try:
            result = self.client.infer(contract.ENSEMBLE, [tensor], **limit)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise self._garbage(error) from error
        except Exception as error:  # The client lets through what its transport raises: sockets, gevent, gRPC.
            raise self._explain(error) from error
        try:
            return _predictions(result, len(images))
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise self._garbage(error) from error

    def _garbage(self, error: Exception) -> ServerUnavailable:
        """For an answer that a server of ours would not give."""
        return ServerUnavailable(
            f"{self.target} answered what is no answer of {contract.ENSEMBLE} ({' '.join(str(error).split())[:200]}); "
            "check --url, and that a release of this version is served there"
        )

    def _explain(self, error: Exception) -> PneumoniaError:
        """The library's own error for what a client raised."""
        status, message = _status(error)
        if status in ("404", "StatusCode.NOT_FOUND") or "unknown model" in message:
            return ServerUnavailable(
                f"{self.target} does not serve {contract.ENSEMBLE} ({message}); check --url", transient=False
            )
        if status in ("400", "StatusCode.INVALID_ARGUMENT"):
            return ImageError(message.removeprefix(_ENSEMBLE_PREFIX))
        if status == "413":
            return ImageError(
                f"{self.target} takes no request as large as this ({message}); its proxy's limit has to be 64 MiB "
                "(client_max_body_size of nginx)"
            )
        if status in _REFUSED:
            return ServerUnavailable(
                f"{self.target} lets nobody in without a key, or not with this one ({status}: {message})",
                transient=False,
            )
        if contract.NOT_FINITE in message:
            return NoAnswer(message.removeprefix(_ENSEMBLE_PREFIX))
        if status in ("501", "StatusCode.UNIMPLEMENTED") and "pip install" in message:
            return DependencyMissing(f"{self.target} cannot answer this: {message.removeprefix(_ENSEMBLE_PREFIX)}")
        if status in ("501", "StatusCode.UNIMPLEMENTED"):
            return ServerUnavailable(f"{self.target} cannot answer this: {message}", transient=False)
        if isinstance(error, TimeoutError) or status == "StatusCode.DEADLINE_EXCEEDED":
            return ServerUnavailable(
                f"no answer from {self.target} over {self.protocol} within {self.timeout_s:g} s; "
                "see the server's log, or wait longer with --timeout"
            )
        if status and not any(sign in message.lower() for sign in _NOBODY_THERE):
            no_room = _NO_ROOM in message
            return ServerUnavailable(
                f"{self.target} did not answer ({status}: {message}); try again later, or see the server's log",
                busy=status in _BUSY or no_room,
                failed=status in _FAILED and not no_room,
            )
        return ServerUnavailable(
            f"no server at {self.target} for {self.protocol} ({message}); start one with `pneumoctl serve`, "
            "or give another with --url"
        )


def _predictions(result: Any, count: int) -> list[Prediction]:
    """The answers of a result. Raises ValueError, AttributeError and such where it is not `count` answers of ours."""
    # All outputs that there are: a release from before `uncertain` has none, and a request by name would fail.
    columns = {name: result.as_numpy(name) for name in contract.ENSEMBLE_OUTPUTS}
    if columns[contract.OUTPUT_UNCERTAIN] is None:
        columns[contract.OUTPUT_UNCERTAIN] = np.zeros(len(columns[contract.OUTPUT_PREDICTION]), np.bool_)
    rows = zip(*(column.reshape(-1) for column in columns.values()), strict=True)
    answers = [Prediction(_text(label), float(c), float(p), float(t), bool(u), _text(identity))
               for label, c, p, t, u, identity in rows]  # fmt: skip
    if len(answers) != count:
        raise ValueError(f"{len(answers)} answers to {count} images")
    for answer in answers:
        # A comparison with NaN is false.
        if answer.label not in contract.LABELS or not (0 <= answer.confidence <= 1 and 0 <= answer.probability <= 1):
            raise ValueError(f"{answer}")
    return answers


def _text(value: Any) -> str:
    """An element of a BYTES tensor: bytes, or a string where the server answers in plain JSON."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _parse(url: str, protocol: str) -> tuple[str, bool]:
    """host:port, and whether to encrypt."""
    scheme, separator, rest = url.rpartition("://")
    target = rest.rstrip("/")
    try:
        parts = urlsplit(f"//{target}")
        complete = bool(parts.hostname and parts.port)
    except ValueError:
        complete = False
    if not complete or (separator and scheme not in _SCHEMES[protocol]):
        schemes = " or ".join(f"{scheme}://" for scheme in _SCHEMES[protocol])
        raise UsageError(f"--url {url}: expected host:port, for --protocol {protocol} optionally after {schemes}")
    return target, scheme == _SCHEMES[protocol][1]


def _status(error: Any) -> tuple[str, str]:
    """The transport's status, empty where it has none, and its message on one line."""
    status = error.status() if hasattr(error, "status") else None
    message = error.message() if hasattr(error, "message") else str(error)
    return str(status or ""), " ".join(str(message).split())
