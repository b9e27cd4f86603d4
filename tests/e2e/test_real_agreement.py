"""One model trained on real X-rays answers 200 of them alike in every form. Takes a minute or two."""

from __future__ import annotations

from pathlib import Path

import pytest

from pneumonia.cli.demo import free_ports
from pneumonia.config.compose import compose
from pneumonia.data.prepare import prepare
from pneumonia.data.sources import fetch
from pneumonia.evaluation.evaluate import evaluate
from pneumonia.export.to_onnx import export_onnx
from pneumonia.inference.predictor import open_predictor
from pneumonia.release.publish import publish
from pneumonia.training.train import train
from pneumonia.triton.server import TritonServer

IMAGES = 200


@pytest.mark.slow
def test_onnx_pytorch_triton_http_and_grpc_agree_on_200_xrays(xrays: Path, tmp_path: Path) -> None:
    # A short training of the full-size local model: agreement needs spread-out answers, not good ones.
    short = ("training.max_steps=120", "training.ema_decay=0.9", "tracking.uri=null", "evaluation.stress=false",
             f"output_dir={tmp_path}")  # fmt: skip
    config = compose(["experiment=local", "data=folder", f"data.root={xrays}", *short])
    data = prepare(config, fetch(config.data, tmp_path / "raw"), tmp_path / "prepared")
    bundle = train(config, data.path, tmp_path / "run" / "bundle")
    evaluate(config, bundle.path, data.path, tmp_path / "evaluation")
    final = export_onnx(config, bundle.path, tmp_path / "evaluation", data.path, tmp_path / "models")
    rows = data.indices("test")[:: len(data.indices("test")) // IMAGES][:IMAGES]
    images = [(xrays / data.index["path"][row]).read_bytes() for row in rows]
    assert len(images) == IMAGES
    answers = {mode: open_predictor(mode, final.path, "cpu").predict(images) for mode in ("pytorch", "onnx")}
    http, grpc, metrics = free_ports(3)
    with TritonServer(publish(final.path, tmp_path / "root"), http, grpc, metrics) as server:
        server.wait_ready()
        for protocol, port in (("http", http), ("grpc", grpc)):
            predictor = open_predictor("triton", url=f"127.0.0.1:{port}", protocol=protocol)
            answers[protocol] = predictor.predict(images)
    reference = answers.pop("pytorch")
    confidences = {round(answer.confidence, 3) for answer in reference}
    assert len(confidences) > 50
    for mode, given in answers.items():
        gaps = [abs(one.probability - other.probability) for one, other in zip(reference, given, strict=True)]
        assert max(gaps) < 1e-3, mode
        assert {answer.model_id for answer in given} == {final.model_id}, mode
