"""What the server tells whoever watches it: metrics beside Triton's own, and the request log that is off by default."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.inference.predictor import open_predictor
from pneumonia.triton.server import TritonServer
from tests.bundles import serving, xray
from tests.triton.test_serving import as_json, post


def metrics(server: TritonServer) -> dict[str, float]:
    """Value by `name{labels}` of the Prometheus endpoint."""
    with urllib.request.urlopen(f"http://{server.address('metrics')}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_answers_are_counted_by_label_and_confidence(release: Path, bundle: Bundle) -> None:
    images = [xray(seed) for seed in range(12)]
    expected = open_predictor("onnx", bundle.path).predict(images)
    assert {answer.label for answer in expected} == set(contract.LABELS)
    with serving(release) as server:
        assert metrics(server)[f'{contract.METRIC_PREDICTIONS}{{label="NORMAL"}}'] == 0, "the warm-up was counted"
        assert post(server, as_json(*images))[0] == 200
        assert post(server, as_json(b"hello"))[0] == 400
        found = metrics(server)
    assert found[f'{contract.METRIC_REFUSED}{{why="image"}}'] == 1, "a refused request counts once"
    assert found[f'{contract.METRIC_REFUSED}{{why="failed"}}'] == 0
    assert found[contract.METRIC_RUNNING] == 0
    for label in contract.LABELS:
        count = sum(answer.label == label for answer in expected)
        assert found[f'{contract.METRIC_PREDICTIONS}{{label="{label}"}}'] == count
    confidences = np.array([answer.confidence for answer in expected])
    for bound in contract.CONFIDENCE_BUCKETS:
        key = f'{contract.METRIC_CONFIDENCE}_bucket{{le="{bound:g}"}}'
        assert found[key] == (confidences <= bound).sum()
    assert found[f"{contract.METRIC_CONFIDENCE}_count"] == len(images)
    assert found[f"{contract.METRIC_CONFIDENCE}_sum"] == pytest.approx(confidences.sum(), rel=1e-5)


def test_every_step_has_quantiles_and_counters_of_its_time(server: TritonServer) -> None:
    assert post(server, as_json(xray(1)))[0] == 200
    found = metrics(server)
    for model in (contract.ENSEMBLE,):
        labels = f'model="{model}",version="1"'
        assert found[f'nv_inference_request_summary_us{{{labels},quantile="0.99"}}'] > 0
        for name in (contract.METRIC_SUCCESS, contract.METRIC_DURATION_US):
            assert found[f"{name}{{{labels}}}"] > 0
        assert f"{contract.METRIC_QUEUE_US}{{{labels}}}" in found
        assert f"{contract.METRIC_PENDING}{{{labels}}}" in found
        assert f'{contract.METRIC_FAILURE}{{model="{model}",reason="REJECTED",version="1"}}' in found


def test_the_request_log_has_every_answer_and_no_name(release: Path, bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    images = [xray(seed) for seed in range(3)]
    request = json.loads(as_json(*images)) | {"id": "MUELLER-1957"}
    with serving(release, request_log=log) as server:
        assert post(server, json.dumps(request).encode())[0] == 200
        assert post(server, as_json(b"PatientName"))[0] == 400
    text = log.read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    expected = open_predictor("onnx", bundle.path).predict(images)
    assert [row["prediction"] for row in rows[:3]] == [answer.label for answer in expected]
    assert [row["probability"] for row in rows[:3]] == pytest.approx([a.probability for a in expected], abs=1e-5)
    assert [row.get("error") for row in rows] == [None, None, None, "refused"]
    for row in rows:
        assert row["model_id"] == bundle.model_id
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", row["time"])
    assert "MUELLER" not in text
    assert "PatientName" not in text


def test_there_is_no_request_log_unless_asked_for(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(contract.REQUEST_LOG_ENV, raising=False)
    with serving(release) as server:
        assert post(server, as_json(xray(1)))[0] == 200
    assert list(tmp_path.iterdir()) == []
