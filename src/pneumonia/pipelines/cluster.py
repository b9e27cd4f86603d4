"""The compiled pipelines on Kubeflow: submit, schedule, status, logs; through the kfp client."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pneumonia import __version__
from pneumonia.errors import BadInput, DependencyMissing, ServerUnavailable, UsageError
from pneumonia.files import write_text
from pneumonia.pipelines.run import compiled_pipeline

HOST_ENV = "KF_PIPELINES_ENDPOINT"
"""Address of Kubeflow Pipelines, the same variable as kfp's own."""
TOKEN_ENV = "KF_PIPELINES_TOKEN"
"""Bearer token for it, where it wants one; kept out of the command line."""
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
_NAMESPACE = "kubeflow"
"""Of a single-user installation."""
IMAGES = {"image": f"pneumonia-step:{__version__}", "cuda_image": f"pneumonia-step-cuda:{__version__}"}
"""What the packaged pipelines call the two step images."""


@dataclass(frozen=True)
class Task:
    """A step of a run. seconds: how long it ran, None while it has not ended. reason: why it failed."""

    name: str
    state: str
    seconds: float | None
    reason: str
    pod: str


@dataclass(frozen=True)
class Run:
    """A run on the cluster, its steps in the order they began."""

    run_id: str
    name: str
    state: str
    reason: str
    tasks: tuple[Task, ...]


def compile_pipeline(name: str, out: Path, **images: str | None) -> Path:
    """Write the compiled pipeline `name` to `out` with other step images; returns `out`.

    images: `image` and `cuda_image`, as a cluster finds them: registry, name, tag or digest; None keeps the name.
    """
    text = compiled_pipeline(name).read_text("utf-8")
    for key, known in IMAGES.items():
        if images.get(key):
            text = text.replace(known, str(images[key]))
    write_text(out, text)
    return out


class Kubeflow:
    """A Kubeflow Pipelines server.

    host: such as http://localhost:8080; by default $KF_PIPELINES_ENDPOINT. namespace: of a multi-user installation.
    Raises UsageError without a host, ServerUnavailable where nothing answers there, DependencyMissing without kfp.
    """

    def __init__(self, host: str | None = None, namespace: str | None = None) -> None:
        found = host or os.environ.get(HOST_ENV)
        if not found:
            raise UsageError(
                f"no Kubeflow Pipelines named; give --host or set {HOST_ENV}, such as http://localhost:8080"
            )
        self.host = found if "://" in found else f"https://{found}"
        self.namespace = namespace
        _require_listener(self.host)
        try:
            import kfp
            import kfp_server_api  # type: ignore[import-untyped]
        except ImportError as error:
            raise DependencyMissing(f"{error.name} is not installed; pip install 'pneumonia[pipelines]'") from error
        self._refusal = kfp_server_api.ApiException
        with self._explained(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A namespace, even that of a single-user installation, spares a first call that is repeated for 25 s.
            self._client = kfp.Client(
                self.host, namespace=namespace or _NAMESPACE, existing_token=os.environ.get(TOKEN_ENV)
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """The client's errors as one line, and its links on stderr, because stdout carries results only."""
        import urllib3

        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except self._refusal as error:
            said = " ".join(str(error.body or error.reason).split())[:400]
            kind = BadInput if error.status in (400, 404, 409) else ServerUnavailable
            advice = f"check run, experiment, namespace and {TOKEN_ENV}"
            raise kind(f"{self.host} answers {error.status}: {said}; {advice}") from error
        except (urllib3.exceptions.HTTPError, TimeoutError) as error:
            raise ServerUnavailable(f"{self.host}: no answer from Kubeflow Pipelines ({error})") from error

    def submit(self, package: Path, arguments: Mapping[str, Any], experiment: str, name: str | None = None) -> str:
        """Start a run of a compiled pipeline and return its id. Raises BadInput for what the server refuses."""
        with self._explained():
            run = self._client.create_run_from_pipeline_package(
                str(package), dict(arguments), run_name=name, experiment_name=experiment, namespace=self.namespace
            )
        return str(run.run_id)

    def schedule(self, package: Path, arguments: Mapping[str, Any], experiment: str, name: str, cron: str) -> str:
        """Start a run at every time of `cron` and return the schedule's id.

        cron: six fields, seconds first. One run at a time, and a time that was missed is not made up for.
        """
        if len(cron.split()) != 6:
            raise UsageError(f"--cron {cron!r}: {len(cron.split())} fields, expected six: seconds first, '0 0 3 * * *'")
        with self._explained():
            owner = self._client.create_experiment(experiment, namespace=self.namespace)
            made = self._client.create_recurring_run(
                owner.experiment_id,
                name,
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                params=dict(arguments),
                pipeline_package_path=str(package),
            )
        return str(made.recurring_run_id)

    def run(self, run_id: str) -> Run:
        """What became of a run so far."""
        with self._explained():
            found = self._client.get_run(run_id)
        details = (found.run_details.task_details if found.run_details else None) or []
        tasks = [
            Task(
                str(item.display_name),
                str(item.state or ""),
                (item.end_time - item.start_time).total_seconds() if item.start_time and _ended(item) else None,
                str(item.error.message) if item.error else "",
                str(item.pod_name or next((child.pod_name for child in item.child_tasks or () if child.pod_name), "")),
            )
            for item in sorted(details, key=lambda item: str(item.start_time or "~"))
        ]
        reason = str(found.error.message) if found.error else ""
        return Run(str(found.run_id), str(found.display_name), str(found.state or ""), reason, tuple(tasks))

    def log(self, run_id: str, pod: str) -> str:
        """What a step's pod has written. Raises BadInput where the server has no such log (any more)."""
        with self._explained():
            for path, query in log_paths(run_id, pod, self.namespace or _NAMESPACE):
                try:
                    answer = self._client._run_api.api_client.call_api(
                        path,
                        "GET",
                        query_params=query,
                        header_params={},
                        auth_settings=["Bearer"],
                        _preload_content=False,
                        _return_http_data_only=True,
                        _request_timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                    )
                except self._refusal as error:
                    if error.status != HTTPStatus.NOT_FOUND:
                        raise
                    continue
                return str(answer.data.decode("utf-8", "replace"))
        raise BadInput(f"{self.host} has no log of pod {pod} of run {run_id}; the pod is gone and nothing archived it")


def log_paths(run_id: str, pod: str, namespace: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Where logs have been, each as path and query: at the UI, at the API server, and at that of older versions.

    kubeflow/pipelines, frontend/server/app.ts and backend/src/apiserver/main.go.
    """
    query = [("podname", pod), ("runid", run_id), ("podnamespace", namespace)]
    steps: list[tuple[str, list[tuple[str, str]]]] = [
        (f"/apis/{version}/runs/{run_id}/nodes/{pod}/log", []) for version in ("v2beta1", "v1alpha1")
    ]
    return [("/k8s/pod/logs", query), *steps]


def _ended(item: Any) -> bool:
    # A step that runs has the beginning of time as its end.
    return bool(item.end_time and item.end_time >= item.start_time)


def find_task(run: Run, name: str | None) -> Task:
    """The step of this name; without one that which failed, else the last that began.

    The server lists groups of steps (the run, its exit handler) beside them, which fail with the step and begin before
    it: of what failed, the last to begin is a step. Raises UsageError where there is none.
    """
    with_pod = [task for task in run.tasks if task.pod]
    if name is None:
        failed = [task for task in with_pod if task.state == "FAILED"]
        chosen = failed[-1:] or with_pod[-1:]
    else:
        chosen = [task for task in with_pod if task.name == name]
    if not chosen:
        names = ", ".join(task.name for task in with_pod) or "none yet"
        raise UsageError(f"run {run.run_id} has no step {name or ''} with a log; its steps are {names}")
    return chosen[0]


def _require_listener(host: str) -> None:
    """The kfp client tries for minutes before it says that nothing listens."""
    parts = urlsplit(host)
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_TIMEOUT_S).close()
    except (KeyError, ValueError) as error:
        raise UsageError(f"{host}: not an address; expected such as http://localhost:8080") from error
    except OSError as error:
        raise ServerUnavailable(
            f"{host}: no answer from Kubeflow Pipelines ({error}); forward its port with `kubectl port-forward -n "
            f"kubeflow svc/ml-pipeline-ui 8080:80`, or give another --host or {HOST_ENV}"
        ) from error


def check_arguments(package: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` with values of the types that the pipeline's parameters have.

    Raises UsageError for a parameter that it does not have, one that it needs, and a value of another type.
    """
    import yaml

    try:
        document = next(iter(yaml.safe_load_all(package.read_text("utf-8"))))
        known = document["root"].get("inputDefinitions", {}).get("parameters", {})
    except (OSError, yaml.YAMLError, KeyError, TypeError, StopIteration) as error:
        raise BadInput(
            f"{package}: not a compiled pipeline ({error!r}); make one with `pneumoctl pipeline compile`"
        ) from error
    needed = {name for name, item in known.items() if not item.keys() & {"defaultValue", "isOptional"}}
    missing = sorted(needed - arguments.keys())
    if missing:
        raise UsageError(f"{package.name} needs {', '.join(missing)}; give them as NAME=VALUE")
    checked: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in known:
            raise UsageError(f"{name}: {package.name} has no such parameter; it has {', '.join(sorted(known))}")
        kind = known[name]["parameterType"]
        try:
            checked[name] = value if kind == "STRING" or not isinstance(value, str) else json.loads(value)
        except ValueError as error:
            raise UsageError(f"{name}={value}: expected {_KINDS[kind][1]}") from error
        if not isinstance(checked[name], _KINDS[kind][0]) or isinstance(checked[name], bool) != (kind == "BOOLEAN"):
            raise UsageError(f"{name}={value}: expected {_KINDS[kind][1]}")
    return checked


_KINDS: dict[str, tuple[Any, str]] = {
    "STRING": (str, "text"),
    "NUMBER_INTEGER": (int, "a whole number"),
    "NUMBER_DOUBLE": ((int, float), "a number"),
    "BOOLEAN": (bool, "true or false"),
    "LIST": (list, 'a JSON list such as ["training.max_steps=4"]'),
    "STRUCT": (dict, 'a JSON object such as {"key": "value"}'),
}
