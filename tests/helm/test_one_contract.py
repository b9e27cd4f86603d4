"""Names, ports, shapes and metrics: the same in the chart, the contract, the server and the dashboard."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import helm_check
import pytest
import yaml

from pneumonia import contract
from pneumonia.triton.server import TritonServer
from tests.bundles import xray
from tests.helm.conftest import ROOT, only

FILES = helm_check.CHART / "files"
sys.path.insert(0, str(FILES))

import smoke_test  # noqa: E402  runs alone, in the chart's test pod

OURS = {contract.METRIC_PREDICTIONS, f"{contract.METRIC_CONFIDENCE}_bucket", contract.METRIC_REFUSED}
SERVERS = {
    contract.METRIC_SUCCESS, contract.METRIC_DURATION_US, contract.METRIC_QUEUE_US, contract.METRIC_PENDING,
}  # fmt: skip


def ci(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((helm_check.CHART / "ci" / f"{name}.yaml").read_text("utf-8"))
    return values


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:nv_inference|pneumonia)_[a-z_]+(?=\{)", text))


def test_the_dashboard_and_the_alerts_ask_for_metrics_of_the_contract() -> None:
    dashboard = json.loads((FILES / "dashboard.json").read_text("utf-8"))
    expressions = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    assert metrics_in(expressions) == SERVERS | OURS
    assert set(re.findall(r'model="([^"]+)"', expressions)) == {contract.ENSEMBLE}
    rules = yaml.safe_dump(only(helm_check.objects(ci("full")), "PrometheusRule"))
    # The steps on a GPU have no counter of their own for what they refuse.
    assert metrics_in(rules) <= SERVERS | OURS | {contract.METRIC_FAILURE}
    cpu = ci("cpu-default") | {"metrics": {"operator": "always"}}
    wakes = next(
        rule["expr"]
        for rule in only(helm_check.objects(cpu), "PrometheusRule")["spec"]["groups"][0]["rules"]
        if rule["alert"] == "PneumoniaErrors"
    )
    assert contract.METRIC_REFUSED in wakes and 'why="failed"' in wakes and contract.METRIC_FAILURE not in wakes
    assert f'label="{contract.LABELS[contract.PNEUMONIA]}"' in rules.replace('\\"', '"')
    query = yaml.safe_dump(only(helm_check.objects(ci("keda")), "InferenceService"))
    assert metrics_in(query) == {contract.METRIC_PENDING}


def test_the_chart_names_what_the_contract_names() -> None:
    items = helm_check.objects(ci("minimal"))
    (server,) = only(items, "InferenceService")["spec"]["predictor"]["containers"]
    assert server["command"] == [contract.SERVER_COMMAND]
    assert server["args"][0] == contract.BAKED_RELEASE
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert ports == {"http1": contract.HTTP_PORT, "grpc": contract.GRPC_PORT, "metrics": contract.METRICS_PORT}
    assert {"name": contract.ALLOW_SYNTHETIC_ENV, "value": "0"} in server["env"]
    policy = json.dumps(only(items, "NetworkPolicy"))
    assert all(f'"port": {port}' in policy for port in ports.values())


def test_the_live_server_has_the_metrics_that_alerts_need(server: TritonServer) -> None:
    url = f"{server.http_url}/v2/models/{contract.ENSEMBLE}/infer"
    good, bad = (
        urllib.request.Request(url, data=data, headers={"Inference-Header-Content-Length": "0"})
        for data in (xray(1), b"no image")
    )
    urllib.request.urlopen(good, timeout=30).close()
    before = refused(metrics_of(server))
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(bad, timeout=30)
    # Only what the server itself got wrong may wake anybody: a bad image is counted apart. Other
    # tests have asked this server before.
    wanted = before | {"image": before["image"] + 1}
    deadline = time.monotonic() + 10
    while (lacks := lacking(text := metrics_of(server))) or refused(text) != wanted:
        # The server counts a request after it has answered it.
        assert time.monotonic() < deadline, (lacks, refused(text), wanted)
        time.sleep(0.1)


def metrics_of(server: TritonServer) -> str:
    with urllib.request.urlopen(f"http://{server.address('metrics')}/metrics", timeout=10) as response:
        return str(response.read().decode())


def lacking(text: str) -> list[str]:
    """Metrics that alerts need and the server does not have."""
    return [metric for metric in SERVERS if not re.search(rf'^{metric}{{[^}}]*model="', text, re.MULTILINE)]


def refused(text: str) -> dict[str, int]:
    """Refused requests by the reason that the server gives."""
    return {
        why: int(n) for why, n in re.findall(rf'^{contract.METRIC_REFUSED}{{why="(\w+)"}} (\d+)', text, re.MULTILINE)
    }


def test_the_flags_of_the_chart_are_flags_of_the_server() -> None:
    from pneumonia.triton.wheel import find_wheel, server_environment

    wheel = find_wheel()
    done = subprocess.run(
        [wheel / "bin" / "tritonserver", "--help"], env=server_environment(wheel), capture_output=True, text=True
    )
    known = set(re.findall(r"--[a-z0-9-]+", done.stdout + done.stderr))
    (server,) = only(helm_check.objects(ci("minimal")), "InferenceService")["spec"]["predictor"]["containers"]
    flags = {flag.partition("=")[0] for flag in server["args"] if flag.startswith("--")}
    assert flags
    assert flags <= known


def test_the_commands_of_the_notes_work(server: TritonServer, tmp_path: Path) -> None:
    notes = helm_check.render(ci("minimal"))["pneumonia/templates/NOTES.txt"]
    (tmp_path / "xray.jpeg").write_bytes(xray(1))
    commands = [line.strip() for line in notes.splitlines() if re.match(r" +(curl|pneumoctl) ", line)]
    assert len(commands) == 3
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        here = command.replace(f"localhost:{contract.HTTP_PORT}", server.address("http")).replace("curl ", "curl -f ")
        done = subprocess.run(["bash", "-c", here], cwd=tmp_path, env=environment, capture_output=True, timeout=60)
        assert done.returncode == 0, f"{shlex.quote(here)}: {done.stderr!r}"
    assert json.loads(done.stdout)["prediction"] in contract.LABELS


def test_the_smoke_test_checks_the_answer(server: TritonServer) -> None:
    names = json.loads((FILES / "contract.json").read_text("utf-8"))
    outputs = smoke_test.ask(server.http_url, names, (FILES / "image.base64").read_text("ascii"))
    assert smoke_test.problems(outputs, names) == []
    other = {"NORMAL": "PNEUMONIA", "PNEUMONIA": "NORMAL"}[outputs["prediction"]]
    assert smoke_test.problems(outputs | {"prediction": other}, names)
    assert smoke_test.problems(outputs | {"model_id": "nameless"}, names)


def test_the_library_never_names_the_chart() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        assert "helm/pneumonia" not in path.read_text("utf-8"), path
