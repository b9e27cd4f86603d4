"""A model whose logits are not numbers for some images: no way in may call that NORMAL."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pneumonia.bundle import Bundle
from pneumonia.core.prediction import OperatingPoint, predictions
from pneumonia.errors import NoAnswer
from pneumonia.inference.predictor import open_predictor
from pneumonia.release.publish import publish
from pneumonia.triton.server import TritonServer
from tests.bundles import serving, tiny_bundle, xray

PNEUMOCTL = [sys.executable, "-c", "from pneumonia.cli.app import main; main()"]
WORDS = "the logits are not finite (nan, nan)"


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that has no number for bright images."""
    return tiny_bundle(tmp_path_factory.mktemp("overflowing") / "models", nan_above=1.0)


@pytest.fixture(scope="module")
def overflowing_server(overflowing: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of it."""
    with serving(publish(overflowing.path, tmp_path_factory.mktemp("releases"))) as running:
        yield running


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images: more than a batch."""
    root = tmp_path_factory.mktemp("images")
    for seed in range(40):
        (root / f"{seed:02d}.jpeg").write_bytes(xray(seed, (64, 64)))
    return root


def pneumoctl(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PNEUMOCTL, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def answers_of(bundle: Bundle, images: Path) -> dict[str, str | None]:
    """What the tensor model says alone, by name; None for an image without a number."""
    predictor = open_predictor("onnx", bundle.path)
    found: dict[str, str | None] = {}
    for path in sorted(images.iterdir()):
        try:
            found[str(path)] = predictor.predict([path.read_bytes()])[0].label
        except NoAnswer:
            found[str(path)] = None
    return found


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_no_answer(value: float) -> None:
    logits = np.array([[0.0, 1.0], [0.0, value], [value, value]], np.float32)
    with pytest.raises(NoAnswer, match=r"^image 1: the logits are not finite \(0\.0, "):
        predictions(logits, OperatingPoint(1.0, 0.5), "m@1")
    assert len(predictions(logits[:1], OperatingPoint(1.0, 0.5), "m@1")) == 1


def test_infer_says_so_and_answers_the_others(overflowing: Bundle, images: Path) -> None:
    expected = answers_of(overflowing, images)
    assert len(set(expected.values())) == 3  # NORMAL, PNEUMONIA and none
    done = pneumoctl("infer", *expected, "--bundle", overflowing.path)
    assert done.returncode == NoAnswer.exit_code, done.stderr
    assert done.stderr.splitlines()[0].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert [path for path, label in expected.items() if f"error: {path}: {WORDS}" in done.stderr] == [
        path for path, label in expected.items() if label is None
    ]
    given = [json.loads(line)["prediction"] for line in done.stdout.splitlines()]
    assert given == [label for label in expected.values() if label]


@pytest.mark.parametrize("protocol", ["", "http", "grpc"])
def test_score_has_a_row_with_the_error_for_that_image_alone(
    request: pytest.FixtureRequest, overflowing: Bundle, images: Path, tmp_path: Path, protocol: str
) -> None:
    source = ["--bundle", overflowing.path]
    if protocol:
        server = request.getfixturevalue("overflowing_server")
        source = ["--mode", "triton", "--url", server.address(protocol), "--protocol", protocol]
    done = pneumoctl("score", images, "-o", tmp_path / "out.jsonl", *source)
    assert done.returncode == 3, done.stderr
    assert "trying again" not in done.stderr

    def no_constant(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=no_constant) for line in lines]
    assert {row["filename"]: row["prediction"] for row in rows} == answers_of(overflowing, images)
    for row in rows:
        assert (row["error"] or "").startswith(WORDS if row["prediction"] is None else "")
        assert (row["probability"] is None) == (row["prediction"] is None)
