"""A Triton server, or anything that speaks the KServe v2 protocol and serves our ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pneumonia import contract
from pneumonia.core.prediction import Prediction
from pneumonia.errors import ImageError, PneumoniaError, ServerUnavailable, UsageError

_DEFAULT_PORTS = {"http": contract.HTTP_PORT, "grpc": contract.GRPC_PORT}
CONNECT_TIMEOUT_S = 5.0


class TritonPredictor:
    """Sends encoded images to the ensemble over HTTP or gRPC.

    url: [http[s]://]host:port, by default the protocol's standard port on this machine. timeout_s: for one request.
    """

    def __init__(self, url: str | None, protocol: str, timeout_s: float) -> None:
        self.protocol = protocol
        self.timeout_s = timeout_s
        self.target, secure = _parse(url or f"127.0.0.1:{_DEFAULT_PORTS[protocol]}")
        if protocol == "http":
            import tritonclient.http as library

            self.client = library.InferenceServerClient(
                self.target, ssl=secure, connection_timeout=min(CONNECT_TIMEOUT_S, timeout_s), network_timeout=timeout_s
            )
        else:
            import tritonclient.grpc as library

            self.client = library.InferenceServerClient(self.target, ssl=secure)
        self.library = library

    def predict(self, images: Sequence[bytes]) -> list[Prediction]:
        """See `Predictor`. More images than one request may carry go in several."""
        answers: list[Prediction] = []
        for start in range(0, len(images), contract.MAX_BATCH_SIZE):
            answers += self._request(images[start : start + contract.MAX_BATCH_SIZE])
        return answers

    def _request(self, images: Sequence[bytes]) -> list[Prediction]:
        tensor = self.library.InferInput(contract.ENSEMBLE_INPUT, [len(images), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[data] for data in images], np.object_))
        outputs = [self.library.InferRequestedOutput(name) for name in contract.ENSEMBLE_OUTPUTS]
        # Only gRPC takes a limit with the request; over HTTP it belongs to the connection.
        limit = {"client_timeout": self.timeout_s} if self.protocol == "grpc" else {}
        try:
            result = self.client.infer(contract.ENSEMBLE, [tensor], outputs=outputs, **limit)
            columns = [result.as_numpy(name).reshape(-1) for name in contract.ENSEMBLE_OUTPUTS]
        except Exception as error:  # The client lets through what its transport raises: sockets, gevent, gRPC.
            raise self._explain(error) from error
        return [Prediction(label.decode(), float(c), float(p), float(t), identity.decode())
                for label, c, p, t, identity in zip(*columns, strict=True)]  # fmt: skip

    def _explain(self, error: Exception) -> PneumoniaError:
        """The library's own error for what a client raised."""
        status, message = _status(error)
        if status in ("400", "StatusCode.INVALID_ARGUMENT"):
            return ImageError(message)
        if status in ("404", "StatusCode.NOT_FOUND"):
            return ServerUnavailable(f"{self.target} does not serve {contract.ENSEMBLE} ({message}); check --url")
        return ServerUnavailable(
            f"no answer from {self.target} over {self.protocol} ({status or type(error).__name__}: {message}); "
            "start a server with `pneumoctl serve`, or give another with --url"
        )


def _parse(url: str) -> tuple[str, bool]:
    """host:port, and whether to encrypt."""
    scheme, separator, rest = url.rpartition("://")
    if separator and scheme not in ("http", "https", "grpc", "grpcs"):
        raise UsageError(f"--url {url}: the scheme is http, https, grpc or grpcs, or left out")
    if not rest.strip("/"):
        raise UsageError(f"--url {url}: expected host:port")
    return rest.rstrip("/"), scheme in ("https", "grpcs")


def _status(error: Any) -> tuple[str, str]:
    """The transport's status, empty where it has none, and its message on one line."""
    status = error.status() if hasattr(error, "status") else None
    message = error.message() if hasattr(error, "message") else str(error)
    return str(status or ""), " ".join(str(message).split())
