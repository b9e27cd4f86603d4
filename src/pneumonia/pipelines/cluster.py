"""Runs on Kubeflow: submit, schedule, status, logs; through the kfp client."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pneumonia.errors import BadInput, DependencyMissing, ServerUnavailable, UsageError
from pneumonia.pipelines.nodes import FAILED, WAITING, Step, limit_of, steps_of, with_log

HOST_ENV = "KF_PIPELINES_ENDPOINT"
"""Address of Kubeflow Pipelines, the same variable as kfp's own."""
TOKEN_ENV = "KF_PIPELINES_TOKEN"
"""Bearer token for it, where it wants one; kept out of the command line."""
COOKIE_ENV = "KF_PIPELINES_COOKIE"
"""Session cookie of a Kubeflow behind Dex, such as oauth2_proxy_kubeflow=...; kept out of the command line."""
CA_ENV = "KF_PIPELINES_CA"
"""File with the certificate authority of a Kubeflow that has one of its own."""
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
POLL_S = 10.0
LOST_AFTER = 6
"""How often in a row a server may not answer a command that waits."""
_NAMESPACE = "kubeflow"
"""Of a single-user installation."""
TERMINATING, TERMINATED = "TERMINATING", "TERMINATED"
ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED", TERMINATED)


@dataclass(frozen=True)
class Run:
    """A run on the cluster, its steps in the order they began.

    state: Kubeflow's (PENDING, RUNNING, SUCCEEDED, FAILED, ...), and TERMINATING or TERMINATED for a run that somebody
    ended, which Kubeflow calls CANCELING and then FAILED. seconds: since it was made, or until it ended. reason: why it
    failed, or what it waits for.
    """

    run_id: str
    name: str
    state: str
    seconds: float
    reason: str
    steps: tuple[Step, ...]


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
                self.host,
                namespace=namespace or _NAMESPACE,
                existing_token=os.environ.get(TOKEN_ENV),
                cookies=os.environ.get(COOKIE_ENV),
                ssl_ca_cert=_certificate(),
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
            advice = f"check run, experiment, namespace and {TOKEN_ENV} or {COOKIE_ENV}"
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
        """What became of a run so far. Raises BadInput where there is no such run."""
        with self._explained():
            found = self._client.get_run(run_id)
        workflow = self._workflow(run_id)
        steps = tuple(self._with_reason(run_id, step) for step in steps_of(workflow))
        state = state_of(str(found.state or "PENDING"), [str(item.state) for item in found.state_history or ()])
        # A run that has not ended has the beginning of time as its end.
        ended = found.finished_at if found.finished_at and found.finished_at >= found.created_at else datetime.now(UTC)
        seconds = round((ended - found.created_at).total_seconds(), 1)
        reason = reason_of(state, seconds, steps, limit_of(workflow)) or (
            str(found.error.message) if found.error else ""
        )
        return Run(str(found.run_id), str(found.display_name), state, seconds, reason, steps)

    def wait(self, run_id: str, timeout_s: float | None = None, poll_s: float = POLL_S) -> Run:
        """The run once it has ended, or after `timeout_s`; each step that begins, waits or ends is a line on stderr.

        A server that does not answer for a moment is asked again.
        """
        began, said, lost = time.monotonic(), set[str](), 0
        while True:
            try:
                run = self.run(run_id)
                lost = 0
            except ServerUnavailable as error:
                lost += 1
                if lost == LOST_AFTER:
                    raise
                print(f"pipeline: {error}; asking again", file=sys.stderr, flush=True)
            else:
                for line in [line for step in run.steps if (line := told(step)) not in said]:
                    said.add(line)
                    print(f"pipeline: {line}", file=sys.stderr, flush=True)
                if run.state in ENDED or (timeout_s is not None and time.monotonic() - began >= timeout_s):
                    return run
            time.sleep(poll_s)

    def log(self, run_id: str, step: Step) -> str:
        """What a step's pod has written. Raises BadInput where the server has no such log (any more)."""
        for path, query in log_paths(run_id, step, self.namespace or _NAMESPACE):
            answer = self._get(path, query, _NO_LOG)
            if answer is not None and not _is_error(answer):
                return answer
        raise BadInput(
            f"{self.host} has no log of step {step.name} of run {run_id}; its pod {step.pod} is gone and nothing "
            "archived what it wrote"
        )

    def _with_reason(self, run_id: str, step: Step) -> Step:
        if step.state != FAILED or not step.pod:
            return step
        try:
            return with_log(step, self.log(run_id, step))
        except (BadInput, ServerUnavailable):
            # The pod is gone: what the workflow says is what is left.
            return step

    def _workflow(self, run_id: str) -> dict[str, Any]:
        """The run's Argo Workflow; the newer API does not show it. Empty until Kubeflow has written it down."""
        answer = self._get(f"/apis/v1beta1/runs/{run_id}", [], ())
        try:
            found = json.loads(answer or "{}").get("pipeline_runtime") or {}
            return dict(json.loads(found.get("workflow_manifest") or "{}"))
        except (ValueError, AttributeError) as error:
            raise ServerUnavailable(f"{self.host}: an answer that is no run of Kubeflow Pipelines: {error}") from error

    def _get(self, path: str, query: list[tuple[str, str]], missing: Container[int]) -> str | None:
        """The text at a path that the kfp client has no method for; None where the status is one of `missing`."""
        with self._explained():
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
                if error.status not in missing:
                    raise
                return None
        return str(answer.data.decode("utf-8", "replace"))


_NO_LOG = (HTTPStatus.NOT_FOUND, HTTPStatus.INTERNAL_SERVER_ERROR)
"""The user interface answers 500 for a pod that is gone."""


def log_paths(run_id: str, step: Step, namespace: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Where logs are, each as path and query: at the API server, by pod or by node, and at the user interface.

    kubeflow/pipelines, backend/src/apiserver/main.go and frontend/server/app.ts. Argo names pods in two ways.
    """
    query = [("podname", step.pod), ("runid", run_id), ("podnamespace", namespace)]
    names = [
        (f"/apis/v1alpha1/runs/{run_id}/nodes/{name}/log", list[tuple[str, str]]()) for name in (step.pod, step.node)
    ]
    return [*names, ("/k8s/pod/logs", query)]


def _is_error(answer: str) -> bool:
    """The API server says 200 before it looks for a log, and then writes its error."""
    try:
        found = json.loads(answer)
    except ValueError:
        return False
    return isinstance(found, dict) and "error_message" in found


def state_of(state: str, history: Container[str]) -> str:
    """Kubeflow's state, or that somebody ended the run, which stands in its history only."""
    if state in ("SUCCEEDED", "SKIPPED") or not ("CANCELING" in history or state in ("CANCELING", "CANCELED")):
        return state
    return TERMINATED if state in ("FAILED", "CANCELED") else TERMINATING


def reason_of(state: str, seconds: float, steps: Sequence[Step], limit_s: int | None = None) -> str:
    """One sentence about a run: what failed, what it was doing when it was ended, or what it waits for.

    limit_s: its limit, where it has taken that long.
    """
    failed, waiting = ([step for step in steps if step.state == kind] for kind in (FAILED, WAITING))
    if state in (TERMINATED, TERMINATING):
        return f"terminated by hand while {failed[0].name} ran" if failed else "terminated by hand"
    if failed and limit_s:
        return f"took longer than the {limit_s} s it may (--run-hours), and was ended while {failed[0].name} ran"
    if failed:
        return told(failed[0])
    if state == "FAILED":
        return "failed outside its steps; see `kubectl get workflows` and the events of the namespace"
    if state not in ENDED and waiting:
        return told(waiting[0])
    if state not in ENDED and not steps:
        return f"no step after {seconds:.0f} s: it waits for Kubeflow's workflow controller or its first driver"
    return ""


def told(step: Step) -> str:
    """A step as a line."""
    code = "" if step.exit_code is None else f" (exit code {step.exit_code})"
    return f"step {step.name}: {step.state.lower()}" + (f": {step.reason}" if step.reason else "") + code


def find_step(run: Run, name: str | None) -> Step:
    """The step of this name; without one that which failed, else the last that began.

    Raises UsageError where there is none.
    """
    with_pod = [step for step in run.steps if step.pod]
    if name is None:
        chosen = [step for step in with_pod if step.state == FAILED][:1] or with_pod[-1:]
    else:
        chosen = [step for step in with_pod if step.name == name.replace("_", "-")]
    if not chosen:
        names = ", ".join(step.name for step in with_pod) or "none yet"
        raise UsageError(f"run {run.run_id} has no step {name or ''} with a log; its steps are {names}")
    return chosen[-1]


def _certificate() -> str | None:
    found = os.environ.get(CA_ENV)
    if found and not Path(found).is_file():
        raise UsageError(f"{CA_ENV}={found}: no such file; expected a PEM file of the server's certificate authority")
    return found or None


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
