"""Every way to ask gives one answer: on the tiny graph, and on a real vision transformer with PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle, Manifest, write_bundle
from pneumonia.core.prediction import Prediction
from pneumonia.inference.inputs import Inputs
from pneumonia.inference.predictor import TensorPredictor, open_predictor
from pneumonia.inference.score import in_process, score
from pneumonia.triton.repository import write_repository
from pneumonia.triton.server import TritonServer
from tests.bundles import serving, xray

IMAGES = 200
MAX_CONFIDENCE_GAP = 1e-3


def require_agreement(answers: dict[str, list[Prediction]]) -> None:
    """Same labels and identities; confidences within the gap. The answers have to differ between images."""
    first, *others = answers.values()
    assert {answer.label for answer in first} == set(contract.LABELS)
    assert np.ptp([answer.probability for answer in first]) > 100 * MAX_CONFIDENCE_GAP
    for mode, other in zip(list(answers)[1:], others, strict=True):
        assert [answer.label for answer in other] == [answer.label for answer in first], mode
        assert {answer.model_id for answer in other} == {answer.model_id for answer in first}, mode
        gap = np.abs(np.subtract([a.confidence for a in other], [a.confidence for a in first]))
        assert gap.max() <= MAX_CONFIDENCE_GAP, f"{mode}: {gap.max()}"


def ask(bundle: Bundle, server: TritonServer, images: list[bytes], *modes: str) -> dict[str, list[Prediction]]:
    """Answers by mode, and of the server by both protocols."""
    answers = {mode: open_predictor(mode, bundle.path).predict(images) for mode in modes}
    for protocol in contract.PROTOCOLS:
        predictor = open_predictor("triton", url=server.address(protocol), protocol=protocol)
        answers[f"triton {protocol}"] = predictor.predict(images)
    return answers


def test_library_and_server_agree(bundle: Bundle, server: TritonServer) -> None:
    require_agreement(ask(bundle, server, [xray(seed) for seed in range(IMAGES)], "onnx"))


@pytest.fixture
def vit_bundle(tmp_path: Path) -> Bundle:
    """A small transformer at its random initialisation, its classifier made steep so that images differ."""
    torch = pytest.importorskip("torch", reason="torch is not installed; pip install 'pneumonia[train]'")
    from pneumonia.config.schema import ModelConfig
    from pneumonia.graph import write_graph
    from pneumonia.training.model import build_model

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = build_model(ModelConfig(**shape)).eval()
    with torch.no_grad():
        model.classifier.weight *= 2000
        # Centred on a middle grey, so that answers lie on both sides of a half whatever the random weights are.
        model.classifier.bias -= model(pixel_values=torch.zeros(1, *contract.TENSOR_INPUT_DIMS)).logits[0]
    model.save_pretrained(tmp_path / "weights")
    write_graph(model, tmp_path / contract.ONNX_FILE)
    files = {name: tmp_path / "weights" / name for name in (contract.WEIGHTS_FILE, contract.MODEL_CONFIG_FILE)}
    manifest = Manifest(name="vit", temperature=1.0, threshold=0.5, recall_target=0.95)
    return write_bundle(tmp_path / "models", manifest, {**files, contract.ONNX_FILE: tmp_path / contract.ONNX_FILE})


@pytest.mark.slow
def test_pytorch_agrees_too(vit_bundle: Bundle, tmp_path: Path) -> None:
    images = [xray(seed) for seed in range(IMAGES)]
    # A threshold between the answers, whatever the random weights give.
    raw = [answer.probability for answer in open_predictor("onnx", vit_bundle.path).predict(images)]
    middle = np.sort(raw)[[IMAGES // 2 - 1, IMAGES // 2]].mean()
    files = {name: vit_bundle.path / name for name in vit_bundle.manifest.files}
    manifest = Manifest(name="vit", temperature=1.0, threshold=float(middle), recall_target=0.95)
    bundle = write_bundle(tmp_path / "with_threshold", manifest, files)
    write_repository(bundle, tmp_path / "repository")
    with serving(tmp_path / "repository") as server:
        require_agreement(ask(bundle, server, images, "pytorch", "onnx"))


@pytest.mark.slow
def test_bulk_scoring_has_the_same_answers_in_both(vit_bundle: Bundle, tmp_path: Path) -> None:
    for seed in range(40):
        (tmp_path / f"{seed:02d}.jpeg").write_bytes(xray(seed))
    paths = sorted(tmp_path.glob("*.jpeg"))
    expected = open_predictor("onnx", vit_bundle.path).predict([path.read_bytes() for path in paths])
    for mode in ("onnx", "pytorch"):
        predictor = cast(TensorPredictor, open_predictor(mode, vit_bundle.path))
        out = tmp_path / f"{mode}.jsonl"
        score(Inputs([str(tmp_path)]), out, in_process(predictor), {"mode": mode})
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["filename"] for row in rows] == list(map(str, paths))
        gap = np.abs(np.subtract([row["probability"] for row in rows], [answer.probability for answer in expected]))
        assert gap.max() <= MAX_CONFIDENCE_GAP, mode
