"""How a run ended, said where people look."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
import urllib.request
from typing import Any

from pneumonia.errors import ServerUnavailable
from pneumonia.kubernetes import in_pod

TIMEOUT_S = 10.0
STATUS_TIMEOUT_S = 120.0
PAUSES_S = (3.0, 6.0, 12.0)
"""Between questions about a run that the API server does not know the end of."""
IN_CLUSTER = "http://ml-pipeline.kubeflow:8888"
"""Kubeflow's API server for the pods of a single-user installation; KF_PIPELINES_ENDPOINT names another."""
_ENDINGS = {"complete": "succeeded", "completed": "succeeded", "cached": "succeeded"}
"""What Kubeflow's metadata store calls an end that everybody else calls succeeded."""


def notify(url: str, run: str, state: str, reason: str, run_id: str = "") -> None:
    """Print how `run` ended and POST it to `url` (empty for nowhere) as {"text": ...}, the form of Slack's webhooks.

    state, reason: as Kubeflow hands them to an exit handler. On a cluster they are those of its metadata store, which
    has no reasons and calls a good run running, so there the API server is asked about `run_id` first. Nothing here
    fails: a message that did not arrive is no reason to call a run failed.
    """
    ended = _asked(run_id) if run_id and in_pod() else ""
    text = f"pneumonia: {run}: {ended or _given(state, reason)}"
    print(f"notify: {text}", file=sys.stderr, flush=True)
    if not url:
        return
    headers = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(url, json.dumps({"text": text}).encode(), headers)
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        # The address of a webhook is its password: http.client puts it into its messages.
        said = str(error) if isinstance(error, OSError) else "not an address or not an answer of HTTP"
        print(f"notify: {type(error).__name__}: {said}; the message was not delivered", file=sys.stderr, flush=True)


def _given(state: str, reason: str) -> str:
    """Kubeflow's word for it. "running" in an exit handler says that the steps ended and nobody wrote down how."""
    said = state.lower()
    if said == "running":
        said = "ended; whether it succeeded is not known here, see `pneumoctl pipeline status`"
    return _ENDINGS.get(said, said) + (f": {reason}" if reason else "")


def _asked(run_id: str) -> str:
    """What the API server knows of the run's steps; empty where it does not know how they ended.

    It learns of a step's end a moment late.
    """
    for pause_s in (*PAUSES_S, 0.0):
        try:
            if said := _known(run_id):
                return said
        except Exception as error:
            # The run is over: nothing that goes wrong here may change what became of it.
            print(f"notify: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        time.sleep(pause_s)
    return ""


def _known(run_id: str) -> str:
    from pneumonia.pipelines.cluster import TERMINATED, TERMINATING
    from pneumonia.pipelines.nodes import FAILED, OMITTED, RUNNING, WAITING

    run = _status(run_id)
    others = {step["state"] for step in run["steps"] if step["name"] != "notify"}
    if run["state"] in (TERMINATED, TERMINATING):
        return str(run["reason"])
    if FAILED in others:
        return f"failed: {run['reason']}"
    if not others or others & {RUNNING, WAITING}:
        return ""
    return "failed outside its steps" if OMITTED in others else "succeeded"


def _status(run_id: str) -> dict[str, Any]:
    """What `pneumoctl pipeline status` prints, from a process of its own: in a step's, kfp hides its client."""
    host = os.environ.get("KF_PIPELINES_ENDPOINT") or IN_CLUSTER
    command = "from pneumonia.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "pipeline", "status", run_id, "--host", host],
        env={name: value for name, value in os.environ.items() if name != "_KFP_RUNTIME"},
        capture_output=True,
        text=True,
        timeout=STATUS_TIMEOUT_S,
        check=False,
    )
    if not done.stdout:
        raise ServerUnavailable(done.stderr.strip().rpartition("\n")[2].removeprefix("error: "))
    return dict(json.loads(done.stdout))
