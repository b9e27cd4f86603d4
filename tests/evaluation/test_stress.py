"""Changes that leave the label: what they do to pixels, what the figures say, and what the gate makes of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumonia import contract
from pneumonia.architecture import load_model
from pneumonia.bundle import Bundle
from pneumonia.data.prepare import PreparedData
from pneumonia.errors import GateRefused
from pneumonia.evaluation.evaluate import evaluate, gate, read_metrics, tracked_figures
from pneumonia.evaluation.stress import CHANGES, stress_figures, worst
from tests.phantoms import OPEN_GATE, smoke_config

BILINEAR = Image.Resampling.BILINEAR


def _change(name: str, pixels: Any) -> Any:
    changed = CHANGES[name].resampled(BILINEAR)(pixels)
    assert changed.shape == pixels.shape
    assert changed.dtype == np.uint8
    return changed


@pytest.fixture(scope="module")
def image() -> Any:
    """Columns of rising grey, with rows that differ a little."""
    return np.add.outer(np.arange(224) // 8, np.arange(224)).astype(np.uint8)


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_change_changes_the_image_and_keeps_its_form(name: str) -> None:
    image = np.random.default_rng(1).integers(0, 256, (224, 224), dtype=np.uint8)
    before = image.copy()
    assert not np.array_equal(_change(name, image), image)
    assert np.array_equal(image, before)


def test_crops_show_what_is_inside_and_borders_what_was_whole(image: Any) -> None:
    levels = {name: _change(name, image)[0].astype(int) for name in CHANGES}
    assert levels["crop_10"][0] == pytest.approx(0.1 * 224, abs=2)
    assert levels["crop_15"][-1] == pytest.approx(0.85 * 224, abs=6)
    assert levels["crop_left"][0] == pytest.approx(0.15 * 224, abs=2)
    assert levels["crop_left"][-1] == pytest.approx(223, abs=2)
    for name, grey in (("border_black", 0), ("border_white", 255), ("border_grey", 128)):
        changed = _change(name, image)
        edge = np.r_[changed[:22].ravel(), changed[-22:].ravel(), changed[:, :22].ravel(), changed[:, -22:].ravel()]
        assert (edge == grey).all()
        assert (changed[22, 22], changed[22, 201]) == pytest.approx((0, 223), abs=3)
    bars = _change("letterbox", image)
    assert (bars[:34] == 0).all()
    assert (bars[-34:] == 0).all()
    assert (bars[34:190, 1:] > 0).all()


def test_blanking_leaves_the_other_part_alone(image: Any) -> None:
    frame, centre = _change("frame_blanked", image), _change("centre_blanked", image)
    assert np.array_equal(frame[32:192, 32:192], image[32:192, 32:192])
    assert len(np.unique(frame[:32])) == 1
    assert len(np.unique(centre[48:176, 48:176])) == 1
    assert np.array_equal(centre[:48], image[:48])
    assert np.array_equal(centre[:, 176:], image[:, 176:])


def test_the_worst_is_of_framing_alone_and_an_undefined_figure_is_the_worst() -> None:
    def row(framing: bool, value: float | None) -> dict[str, Any]:
        return {"framing": framing, **{name: {"value": value} for name in ("auroc", "recall", "specificity")}}

    rows = {"blur": row(False, 0.1), "crop": row(True, 0.7), "bars": row(True, 0.6)}
    assert worst(rows)["recall"] == {"value": 0.6, "change": "bars"}
    assert worst({**rows, "odd": row(True, None)})["auroc"] == {"value": None, "change": "odd"}


def test_no_more_images_are_scored_than_asked_for(
    trained: Bundle, prepared: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = smoke_config(tmp_path)
    rows = prepared.indices("test")
    found = stress_figures(load_model(trained.path), prepared, rows, trained.manifest, config.evaluation)
    assert found["images"] == config.evaluation.stress_images < len(rows)
    assert set(found["changes"]) == set(CHANGES)
    assert set(found["worst"]) == {"auroc", "recall", "specificity"}
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def stressed(trained: Bundle, prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = Path(tmp_path_factory.mktemp("stressed")) / "evaluation"
    evaluate(smoke_config(out.parent), trained.path, prepared.path, out)
    return out


def test_an_evaluation_tells_them_everywhere(stressed: Path) -> None:
    metrics = read_metrics(stressed)
    page = (stressed / contract.REPORT_FILE).read_text()
    card = (stressed / contract.CARD_FILE).read_text()
    for item in metrics["stress"]["changes"].values():
        assert f"<td>{item['title']}</td>" in page
        assert f"| {item['title']} | " in card
    figures = tracked_figures(metrics)
    assert figures["stress_crop_10_auroc"] == metrics["stress"]["changes"]["crop_10"]["auroc"]["value"]
    assert figures["stress_worst_auroc"] == min(
        value for name, value in figures.items()
        if name.endswith("_auroc") and name.startswith(("stress_crop", "stress_border", "stress_zoom", "stress_letter",
                                                        "stress_pillar"))
    )  # fmt: skip


def test_switched_off_nothing_is_told(trained: Bundle, prepared: PreparedData, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    evaluate(smoke_config(tmp_path, "evaluation.stress=false"), trained.path, prepared.path, out)
    assert "stress" not in read_metrics(out)
    assert "Under changes" not in (out / contract.REPORT_FILE).read_text()
    assert "Under changes" not in (out / contract.CARD_FILE).read_text()


def test_the_gate_bounds_the_worst_change_of_framing(stressed: Path, tmp_path: Path) -> None:
    config = smoke_config(tmp_path, *OPEN_GATE)

    def judged(**bounds: float) -> dict[str, Any]:
        return gate(dataclasses.replace(config, gate=dataclasses.replace(config.gate, **bounds)), stressed)

    # Of drawn images nothing is asked: they have no lungs.
    assert "stress_recall" not in judged(stress_recall=1.0)
    file = stressed / contract.METRICS_FILE
    metrics = json.loads(file.read_text())
    item = {"value": 0.8, "change": "crop_15"}
    real = {**metrics, "synthetic": False, "stress": {**metrics["stress"], "worst": {"specificity": item}}}
    try:
        file.write_text(json.dumps(real))
        assert judged(stress_specificity=0.8)["stress_specificity"] == {**item, "least": 0.8}
        assert "stress_specificity" not in judged()
        with pytest.raises(GateRefused, match=r"stress specificity 0\.8000 under crop_15 is below 0\.81"):
            judged(stress_specificity=0.81)
        file.write_text(json.dumps({name: value for name, value in real.items() if name != "stress"}))
        with pytest.raises(GateRefused, match=r"was not measured.*evaluation\.stress=true"):
            judged(stress_specificity=0.5)
    finally:
        file.write_text(json.dumps(metrics))
