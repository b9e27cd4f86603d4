"""What the served ensemble answers: raw and base64 images, batches, bad images, too many at once."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.inference.predictor import open_predictor
from pneumonia.triton.server import TritonServer
from tests.bundles import serving, xray


def post(server: TritonServer, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body of one inference request."""
    url = f"{server.http_url}/v2/models/{contract.ENSEMBLE}/infer"
    request = urllib.request.Request(url, body, headers or {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def as_json(*images: bytes) -> bytes:
    """A plain JSON request with base64 text."""
    texts = [base64.b64encode(data).decode() for data in images]
    tensor = {"name": contract.ENSEMBLE_INPUT, "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}
    return json.dumps({"inputs": [tensor]}).encode()


def outputs(body: bytes) -> dict[str, list[Any]]:
    """Output values by name; each of shape [-1, 1]."""
    found = {item["name"]: item for item in json.loads(body)["outputs"]}
    assert all(item["shape"] == [len(item["data"]), 1] for item in found.values())
    return {name: item["data"] for name, item in found.items()}


def test_every_output_is_that_of_the_library(server: TritonServer, bundle: Bundle) -> None:
    images = [xray(seed) for seed in range(3)]
    expected = open_predictor("onnx", bundle.path).predict(images)
    status, body = post(server, as_json(*images))
    answer = outputs(body)
    assert status == 200
    assert set(answer) == set(contract.ENSEMBLE_OUTPUTS)
    assert answer["prediction"] == [item.label for item in expected]
    assert answer["confidence"] == pytest.approx([item.confidence for item in expected], abs=1e-6)
    assert answer["probability"] == pytest.approx([item.probability for item in expected], abs=1e-6)
    assert answer["threshold"] == pytest.approx([0.4] * 3)
    assert answer["model_id"] == [bundle.model_id] * 3


def test_raw_bytes_and_base64_text_give_one_answer(server: TritonServer) -> None:
    image = xray(7)
    status, raw = post(server, image, {"Inference-Header-Content-Length": "0"})
    assert status == 200
    text = outputs(post(server, as_json(image))[1])
    # A raw request is answered with a JSON header and the values behind it.
    assert text["prediction"][0].encode() in raw
    assert text["model_id"][0].encode() in raw


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"hello", "not an image this reads"),
        (b"", "empty, 0 bytes"),
        (xray(1)[:400], "damaged image data"),
        (xray(1, (8, 300)), "8x300 pixels; a radiograph of at least 64x64"),
    ],
)
def test_a_bad_image_is_400_with_its_reason(server: TritonServer, image: bytes, reason: str) -> None:
    status, body = post(server, as_json(image))
    assert status == 400
    assert reason in json.loads(body)["error"]


def test_a_request_is_answered_whole_or_not_at_all(server: TritonServer) -> None:
    status, body = post(server, as_json(xray(1), b"hello", xray(2)))
    assert status == 400
    assert "image 1: not an image" in json.loads(body)["error"]


def test_a_bad_image_fails_its_own_request_and_no_other_of_the_batch(server: TritonServer) -> None:
    # Large images keep the first batch busy while the others gather into the next ones.
    good = [xray(seed, (1500, 1500)) for seed in range(4)]
    bodies = [as_json(b"hello" if n % 3 == 0 else good[n % 4]) for n in range(36)]
    before = executions(server)
    with ThreadPoolExecutor(36) as pool:
        statuses = [status for status, _ in pool.map(lambda body: post(server, body), bodies)]
    assert statuses == [400 if n % 3 == 0 else 200 for n in range(36)]
    assert executions(server) - before == 36, "requests shared a batch, whose images then wait for each other"


def executions(server: TritonServer) -> int:
    """Batches that were run."""
    with urllib.request.urlopen(f"{server.http_url}/v2/models/{contract.ENSEMBLE}/stats") as response:
        return int(json.load(response)["model_stats"][0]["execution_count"])


def test_what_is_over_the_queue_is_refused_at_once(release: Path, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(release, tmp_path / "repository"))
    config = repository / contract.ENSEMBLE / "config.pbtxt"
    text = config.read_text()
    config.write_text(re.sub(r"max_queue_size: \d+", "max_queue_size: 1", text))
    stream = io.BytesIO()
    Image.effect_noise((4000, 4000), 40).save(stream, "JPEG")
    body = as_json(stream.getvalue())
    with serving(repository) as server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(server, body), range(8)))
        again = post(server, as_json(xray(1)))
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503}
    assert b"maximum queue size" in next(text for status, text in answers if status == 503)
    assert again[0] == 200
