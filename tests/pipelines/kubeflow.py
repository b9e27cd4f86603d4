"""A Kubeflow Pipelines server of a few paths of its API, over real HTTP, with workflows as Argo writes them.

test_recordings.py holds this form against what a real server answered.
"""

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
    """Keeps what it was sent. runs, workflows: by run. logs: by pod. logs_at: their path, with {run} and {pod}."""

    def __init__(self) -> None:
        self.experiments: list[dict[str, Any]] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.schedules: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.workflows: dict[str, dict[str, Any]] = {}
        self.logs_at = "/apis/v1alpha1/runs/{run}/nodes/{pod}/log"
        self.url = ""
        self.cookies: set[str] = set()

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
        if found := re.fullmatch(r"/apis/v1beta1/runs/([^/]+)", path):
            manifest = json.dumps(self.workflows.get(found[1], {}))
            return 200, {"run": {"id": found[1]}, "pipeline_runtime": {"workflow_manifest": manifest}}
        for run, pod in ((run, pod) for run in self.runs for pod in self.logs):
            asked = {"podname": [pod], "runid": [run], "podnamespace": ["kubeflow"]}
            if path == self.logs_at.format(run=run, pod=pod) and ("{pod}" in self.logs_at or query == asked):
                return 200, self.logs[pod]
        if path.startswith("/apis/v1alpha1/runs/"):
            # The status is written before the log is looked for.
            return 200, '{"error_message":"Failed to read logs","error_details":"pods not found"}'
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


LAUNCHED = """time=2026-11-25T07:14:08.934Z level=INFO msg="capturing logs" argo=true
I1125 07:14:08.970145      15 main.go:67] Setting log level to: '1'
[KFP Executor 2026-11-25 07:14:09,028 INFO]: Got executor_input:
{
    "inputs": {
        "parameterValues": {
        }
    }
}
"""
"""What stands above a step's own lines in its pod's log."""


def ended(code: int) -> str:
    """What stands below them."""
    last = f"F1125 07:14:09.245605      15 main.go:59] failed to execute component: exit status {code}\n"
    done = 'time=2026-11-25T07:14:09.937Z level=INFO msg="sub-process exited" argo=true error="exit status 1"\n'
    return (
        f"E1125 07:14:09.220863      15 launcher_v2.go:449] x: exit status {code}\n{last}{done}Error: exit status 1\n"
    )


def workflow(*steps: tuple[str, str, str]) -> dict[str, Any]:
    """An Argo Workflow with these steps, each (name, phase of its pod, message), ten seconds apart.

    The phase "cached" makes no pod, "Omitted" neither driver nor pod, and "driving" is that of a driver that runs.
    """
    nodes: dict[str, Any] = {}

    def add(path: str, template: str, kind: str, phase: str, second: int, message: str = "", **more: Any) -> None:
        at = f"2026-11-01T10:{second // 60:02}:{second % 60:02}Z"
        end = "" if phase in ("Running", "Pending") else f"2026-11-01T10:{second // 60:02}:{second % 60 + 4:02}Z"
        node = {"id": f"wf-{len(nodes)}", "name": path, "displayName": path.rpartition(".")[2], "type": kind}
        node |= {"templateName": template, "phase": phase, "message": message, "startedAt": at, "finishedAt": end}
        nodes[node["id"]] = {**node, **more}

    root = "wf(0).root(0)"
    add("wf", "entrypoint", "Retry", "Running", 0)
    add(root, "root", "DAG", "Running", 0)
    for number, (name, phase, message) in enumerate(steps):
        path, second = f"{root}.{name}", 10 * number
        if phase == "Omitted":
            for suffix, kind in (("-driver", "driver"), ("", "executor")):
                add(path + suffix, f"system-container-{kind}", "Skipped", "Omitted", second, message)
            continue
        driven = "Running" if phase == "driving" else "Succeeded"
        decided = {"outputs": {"parameters": [{"name": "cached-decision", "value": str(phase == "cached").lower()}]}}
        add(f"{path}-driver", "system-container-driver", "Retry", driven, second, **decided)
        add(f"{path}-driver(0)", "system-container-driver", "Pod", driven, second, **decided)
        if phase == "driving":
            continue
        outer = {"cached": "Succeeded", "Pending": "Running"}.get(phase, phase)
        add(path, "system-container-executor", "Retry", outer, second)
        add(f"{path}(0)", "system-container-executor", "DAG", outer, second)
        if phase != "cached":
            add(f"{path}(0).executor", "system-container-impl", "Retry", outer, second, message)
            add(f"{path}(0).executor(0)", "system-container-impl", "Pod", phase, second, message)
    return {"metadata": {"name": "wf"}, "status": {"phase": "Running", "nodes": nodes}}


def pod_of(made: dict[str, Any], step: str) -> str:
    """Name of the pod of a step of a workflow."""
    (node,) = [n for n in made["status"]["nodes"].values() if n["type"] == "Pod" and f".{step}(0).ex" in n["name"]]
    return f"wf-system-container-impl-{node['id'].removeprefix('wf-')}"


@contextlib.contextmanager
def serve(server: Any) -> Iterator[str]:
    """Answer HTTP on a free port of this machine with `server.answer`; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            parts = urlsplit(self.path)
            if isinstance(server, FakeKubeflow) and (cookie := self.headers.get("Cookie")):
                server.cookies.add(cookie)
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
