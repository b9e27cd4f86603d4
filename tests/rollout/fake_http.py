"""The in-memory cluster over real HTTP, so that the real `kubernetes` client can be tested against it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pneumonia.files import write_json
from pneumonia.kubernetes import ApiError
from tests.rollout.fake_cluster import FakeCluster

_MERGE_PATCH = "application/merge-patch+json"


@contextlib.contextmanager
def serve(cluster: FakeCluster, after: Callable[[int], None] = lambda calls: None) -> Iterator[str]:
    """Answer on a free port of this machine; yields the URL.

    after: called with the number of calls so far, when one has had its effect and before it is answered.
    """
    lock, calls = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            parts = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                status, answer = self._answer(parts.path, dict(parse_qsl(parts.query)), raw)
                calls[0] += 1
                after(calls[0])
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, bytes) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _answer(self, path: str, query: dict[str, str], raw: bytes) -> tuple[int, Any]:
            if self.command == "PATCH" and self.headers.get("Content-Type") != _MERGE_PATCH:
                return 415, _status(415, f"expected {_MERGE_PATCH}", path)
            try:
                return 200, cluster.request(self.command, path, json.loads(raw) if raw else None, query)
            except ApiError as error:
                # Where a kind is unknown there is no object to speak of, and Kubernetes answers in plain text.
                unknown = error.status == 404 and not error.kind_known
                return error.status, b"404 page not found\n" if unknown else _status(error.status, str(error), path)

        def log_message(self, *arguments: Any) -> None:
            pass

        do_GET = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815  the names are http.server's

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _status(code: int, message: str, path: str) -> dict[str, Any]:
    details = {"name": path.rpartition("/")[2]}
    return {"kind": "Status", "status": "Failure", "message": message, "code": code, "details": details}


def write_kubeconfig(path: Path, url: str) -> Path:
    """A kubeconfig for the server at `url`; returns `path`."""
    write_json(
        path,
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": url}}],
            "users": [{"name": "fake", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "current-context": "fake",
        },
    )
    return path
