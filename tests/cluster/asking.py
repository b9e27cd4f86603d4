"""Clients that ask all the time, as a hospital's do, and count what fails."""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

from pneumonia import contract

EVERY_S = 0.05
TIMEOUT_S = 10.0


@dataclass
class Asking:
    """Asks `url` every 50 ms with a connection of its own each time. host: the Host header, for a gateway.

    failures: seconds since the start and what was said. models: model_id -> answers.
    """

    url: str
    image: bytes
    host: str = ""
    asked: int = 0
    failures: list[tuple[float, str]] = field(default_factory=list)
    models: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> Asking:
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._ask_on, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(2 * TIMEOUT_S)

    def _ask_on(self) -> None:
        with ThreadPoolExecutor(16) as pool:
            turn = 0
            while not self._stop.is_set():
                pool.submit(self._count)
                turn += 1
                # By the clock: an answer that takes long takes none of the requests after it away.
                self._stop.wait(max(0.0, self._began + turn * EVERY_S - time.monotonic()))

    def _count(self) -> None:
        at = time.monotonic() - self._began
        try:
            model = ask(self.url, self.image, self.host)
        except (OSError, ValueError, KeyError) as error:
            said = f"{error.code} {error.read()[:200]!r}" if isinstance(error, urllib.error.HTTPError) else repr(error)
            with self._lock:
                self.asked += 1
                self.failures.append((round(at, 2), said))
            return
        with self._lock:
            self.asked += 1
            self.models[model] += 1

    def said(self) -> str:
        """The count in words, with the first failures."""
        return f"{len(self.failures)} of {self.asked} requests failed: {self.failures[:5]}"


def ask(url: str, image: bytes, host: str = "") -> str:
    """model_id of a server's answer about one image. Raises OSError, HTTPError among them, where there is none."""
    tensor = {
        "name": contract.ENSEMBLE_INPUT, "shape": [1, 1], "datatype": "BYTES",
        "data": [base64.b64encode(image).decode("ascii")],
    }  # fmt: skip
    headers = {"Content-Type": "application/json", **({"Host": host} if host else {})}
    body = json.dumps({"inputs": [tensor]}).encode()
    request = urllib.request.Request(f"{url}/v2/models/{contract.ENSEMBLE}/infer", data=body, headers=headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=TIMEOUT_S) as response:
        outputs = {output["name"]: output["data"][0] for output in json.loads(response.read())["outputs"]}
    assert outputs["prediction"] in ("NORMAL", "PNEUMONIA") and 0 <= outputs["confidence"] <= 1
    return str(outputs["model_id"])
