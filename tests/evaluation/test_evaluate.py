"""An evaluation scores the test split with the bundle's own threshold, and the gate reads what it wrote."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pneumonia import contract
from pneumonia.bundle import Bundle, extend_bundle
from pneumonia.data.prepare import PreparedData
from pneumonia.errors import DataError, GateRefused
from pneumonia.evaluation.card import model_card
from pneumonia.evaluation.evaluate import evaluate, gate, read_metrics
from pneumonia.evaluation.report import write_report
from tests.phantoms import OPEN_GATE, smoke_config


@pytest.fixture(scope="module")
def evaluated(trained: Bundle, prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = Path(tmp_path_factory.mktemp("evaluation")) / "evaluation"
    evaluate(smoke_config(out.parent), trained.path, prepared.path, out)
    return out


def test_the_figures_are_those_of_the_test_split_at_the_served_threshold(
    evaluated: Path, trained: Bundle, prepared: PreparedData
) -> None:
    metrics = read_metrics(evaluated)
    with (evaluated / contract.PREDICTIONS_FILE).open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["row"]) for row in rows] == prepared.indices("test").tolist()
    probability = np.array([float(row["probability"]) for row in rows])
    actual = np.array([row["label"] == "PNEUMONIA" for row in rows])
    said = np.array([row["prediction"] == "PNEUMONIA" for row in rows])
    assert (said == (probability >= trained.manifest.threshold)).mean() > 0.99
    assert metrics["test"]["auroc"]["value"] == pytest.approx(roc_auc_score(actual, probability), abs=1e-3)
    assert metrics["test"]["accuracy"]["value"] == pytest.approx((said == actual).mean(), abs=1e-6)
    (tn, fp), (fn, tp) = metrics["confusion"]
    assert (tn + fp + fn + tp, tp + fn) == (len(rows), actual.sum())
    assert metrics["threshold"] == trained.manifest.threshold


def test_a_synthetic_evaluation_says_so_first(evaluated: Path) -> None:
    page = (evaluated / contract.REPORT_FILE).read_text()
    body = page[page.index("<body>") + len("<body>") :].lstrip()
    assert "Synthetic data" in body.splitlines()[0]
    assert "Not a medical device" in page
    assert "data:image/png;base64," in page
    # Self-contained: nothing is loaded from anywhere.
    assert "http://" not in page
    assert "https://" not in page
    assert read_metrics(evaluated)["synthetic"] is True


def test_the_report_tells_its_source_and_gives_every_figure_its_interval(
    evaluated: Path, trained: Bundle, tmp_path: Path
) -> None:
    metrics = read_metrics(evaluated)
    assert "children" not in (evaluated / contract.REPORT_FILE).read_text()
    origins = {"phantom": "drawn images alone", "folder": "one folder", "kaggle": "CC BY 4.0"}
    group = {"images": 10, "patients": 9, "accuracy": 0.9, "against": "itself", "test": metrics["test"]}
    for source, words in origins.items():
        write_report(tmp_path / "page", {**metrics, "source": source, "subgroups": {"virus": group}}, {}, [])
        page = (tmp_path / "page").read_text()
        assert words in page
        assert ("children" in page) == (source == "kaggle")
        manifest = dataclasses.replace(trained.manifest, data={**trained.manifest.data, "source": source})
        card = model_card(manifest, metrics)
        assert words in card
        assert ("children" in card) == (source == "kaggle")
    line = page[page.index("<tr><td>virus</td>") :].partition("</tr>")[0]
    for name in ("recall", "specificity", "auroc"):
        figure = metrics["test"][name]
        assert f"<td>{figure['low']:.4f} to {figure['high']:.4f}</td>" in line
    half = metrics["test_at_half"]["accuracy"]
    assert f"<td>{half['low']:.4f} to {half['high']:.4f}</td>" in page


def test_unknown_patients_are_on_the_first_page(trained: Bundle, prepared: PreparedData, tmp_path: Path) -> None:
    unknown = extend_bundle(trained, tmp_path / "bundle", {}, data={**trained.manifest.data, "patients": "unknown"})
    evaluate(smoke_config(tmp_path), unknown.path, prepared.path, tmp_path / "evaluation")
    assert "Patients are unknown" in (tmp_path / "evaluation" / contract.REPORT_FILE).read_text()


def test_another_data_set_is_refused_because_its_test_images_may_have_been_trained_on(
    trained: Bundle, prepared: PreparedData, tmp_path: Path
) -> None:
    other = extend_bundle(trained, tmp_path / "bundle", {}, data={**trained.manifest.data, "digest": "f" * 64})
    with pytest.raises(DataError, match="evaluate on the data set that it was trained with"):
        evaluate(smoke_config(tmp_path), other.path, prepared.path, tmp_path / "evaluation")
    assert not (tmp_path / "evaluation").exists()


def test_the_gate_refuses_below_its_bounds_and_passes_above(evaluated: Path) -> None:
    config = smoke_config(evaluated.parent, *OPEN_GATE)
    verdict = gate(config, evaluated)
    assert set(verdict) == {"accuracy", "precision", "recall", "f1", "recall_low", "champion"}
    assert "no champion" in verdict["champion"]["why"]
    strict = dataclasses.replace(config, gate=dataclasses.replace(config.gate, precision=1.0, accuracy=1.0))
    with pytest.raises(GateRefused) as caught:
        gate(strict, evaluated)
    assert [reason.split()[1] for reason in caught.value.reasons] == ["accuracy", "precision"]


def test_bounds_that_are_asked_for_are_asked(evaluated: Path) -> None:
    config = smoke_config(evaluated.parent, *OPEN_GATE)
    asked = dataclasses.replace(config.gate, specificity=0.0, auroc=0.0, ece=1.0)
    verdict = gate(dataclasses.replace(config, gate=asked), evaluated)
    said = [list(verdict[name]) for name in ("specificity", "auroc", "ece")]
    assert said == [["value", "least"], ["value", "least"], ["value", "most"]]
    strict = dataclasses.replace(config.gate, specificity=1.0, auroc=1.0, ece=0.0)
    with pytest.raises(GateRefused) as caught:
        gate(dataclasses.replace(config, gate=strict), evaluated)
    assert {reason.split()[1] for reason in caught.value.reasons} >= {"auroc", "ece"}


def test_a_folder_without_metrics_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `pneumoctl evaluate`"):
        read_metrics(tmp_path)
    (tmp_path / contract.METRICS_FILE).write_text(json.dumps([1])[:-1])
    with pytest.raises(DataError, match="no readable"):
        read_metrics(tmp_path)


def test_a_model_that_is_worse_than_the_champion_is_refused_and_an_equal_one_is_not(
    evaluated: Path, tmp_path: Path
) -> None:
    config = smoke_config(tmp_path, *OPEN_GATE)
    metrics = read_metrics(evaluated)
    with (evaluated / contract.PREDICTIONS_FILE).open() as stream:
        rows = list(csv.DictReader(stream))

    def stand_in(name: str, sick: float = 0.9, **changes: object) -> Path:
        """An evaluation of the same images whose model knows the truth, or with sick=0.1 nothing."""
        folder = tmp_path / name
        folder.mkdir()
        (folder / contract.METRICS_FILE).write_text(json.dumps({**metrics, "threshold": 0.5, **changes}))
        lines = ["row,sha256,patient,label,probability"]
        lines += [
            f"{r['row']},{r['sha256']},{r['patient']},{r['label']},{sick if r['label'] == 'PNEUMONIA' else 0.1}"
            for r in rows
        ]
        (folder / contract.PREDICTIONS_FILE).write_text("\n".join(lines) + "\n")
        return folder

    def against(champion: Path, ours: Path = evaluated) -> dict[str, object]:
        return gate(dataclasses.replace(config, gate=dataclasses.replace(config.gate, champion=str(champion))), ours)

    with pytest.raises(GateRefused, match="test auroc may be below the champion's by more"):
        against(stand_in("perfect"), stand_in("useless", sick=0.1))
    assert against(evaluated)["champion"]["compared"] is True  # type: ignore[index]
    with pytest.raises(DataError, match="evaluate the champion on the same prepared data set"):
        against(stand_in("elsewhere", data_digest="f" * 64))


def _against(champion: Path, ours: Path, folder: Path) -> dict[str, Any]:
    """The differences that the gate finds."""
    found = gate(smoke_config(folder, *OPEN_GATE, f"gate.champion={champion}"), ours)["champion"]["difference"]
    assert isinstance(found, dict)
    return found


def test_a_champion_that_saw_the_images_in_another_order_is_compared_image_by_image(
    evaluated: Path, tmp_path: Path
) -> None:
    champion = tmp_path / "champion"
    shutil.copytree(evaluated, champion)
    head, *lines = (champion / contract.PREDICTIONS_FILE).read_text().splitlines()
    (champion / contract.PREDICTIONS_FILE).write_text("\n".join([head, *reversed(lines)]) + "\n")
    for gap in _against(champion, evaluated, tmp_path).values():
        assert (gap["value"], gap["low"], gap["high"]) == (0, 0, 0)


def test_a_champion_of_other_images_or_labels_or_of_an_older_release_is_refused(
    evaluated: Path, tmp_path: Path
) -> None:
    champion = tmp_path / "champion"
    shutil.copytree(evaluated, champion)
    file = champion / contract.PREDICTIONS_FILE
    before = file.read_text()
    digest = next(csv.DictReader(before.splitlines()))["sha256"]
    changes = {
        "other images or labels": [before.replace(digest, "f" * 64), before.replace(",NORMAL,", ",PNEUMONIA,", 1)],
        "has no column sha256": [before.replace("sha256", "digest", 1)],
    }
    for words, texts in changes.items():
        for text in texts:
            assert text != before
            file.write_text(text)
            with pytest.raises(DataError, match=words):
                _against(champion, evaluated, tmp_path)
