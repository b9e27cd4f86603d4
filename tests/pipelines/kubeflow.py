"""A Kubeflow Pipelines server of a few paths of its v2beta1 API, as the kfp client uses them, over real HTTP."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class FakeKubeflow:
    """Keeps what it was sent. runs: by id. logs: by pod. logs_at: the path they are at, with {run} and {pod}."""

    def __init__(self) -> None:
        self.experiments: list[dict[str, Any]] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.schedules: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.logs_at = "/k8s/pod/logs"
        self.url = ""

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        """Status and JSON, or text, of one request."""
        if path.endswith("/healthz"):
            return 200, {"multi_user": False}
        if path == "/apis/v2beta1/experiments":
            return self._experiments(method, query, body)
        if path == "/apis/v2beta1/runs" and method == "POST":
            return 200, self._kept(self.runs, "run", body)
        if path == "/apis/v2beta1/recurringruns" and method == "POST":
            return 200, self._kept(self.schedules, "recurring_run", body)
        if found := re.fullmatch(r"/apis/v2beta1/runs/([^/]+)", path):
            run = self.runs.get(found[1])
            return (200, run) if run else (404, {"message": f"Run {found[1]} not found", "code": 5})
        for run, pod in ((run, pod) for run in self.runs for pod in self.logs):
            asked = {"podname": [pod], "runid": [run], "podnamespace": ["kubeflow"]}
            if path == self.logs_at.format(run=run, pod=pod) and ("{pod}" in self.logs_at or query == asked):
                return 200, self.logs[pod]
        return 404, {"message": f"no path {method} {path}"}

    def _experiments(self, method: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if method == "POST":
            self.experiments.append({"experiment_id": f"e{len(self.experiments)}", **body})
            return 200, self.experiments[-1]
        wanted = json.loads(query["filter"][0])["predicates"][0]["stringValue"] if "filter" in query else None
        found = [item for item in self.experiments if wanted in (None, item["display_name"])]
        return 200, {"experiments": found, "total_size": len(found)} if found else {}

    def _kept(self, where: dict[str, dict[str, Any]], kind: str, body: Any) -> dict[str, Any]:
        made = {f"{kind}_id": f"{kind}-{len(where)}", "state": "PENDING", "created_at": "2026-11-01T10:00:00Z", **body}
        where[made[f"{kind}_id"]] = made
        return made


@contextlib.contextmanager
def serve(server: Any) -> Iterator[str]:
    """Answer HTTP on a free port of this machine with `server.answer`; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            parts = urlsplit(self.path)
            status, answer = server.answer(self.command, parts.path, parse_qs(parts.query), body)
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = do_PATCH = _any  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join(5)
