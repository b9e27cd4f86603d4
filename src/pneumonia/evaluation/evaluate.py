"""A bundle's figures on the test split, and the gate that reads them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia import contract
from pneumonia.bundle import Bundle, open_bundle
from pneumonia.config.schema import Config
from pneumonia.core.gate import refusals, stress_refusals, worse_than_champion
from pneumonia.core.metrics import (
    Interval,
    calibration_with_intervals,
    confusion,
    discordant,
    metrics_with_intervals,
    paired_difference,
)
from pneumonia.core.prediction import decide
from pneumonia.data.prepare import PreparedData, load_prepared
from pneumonia.errors import DataError, GateRefused
from pneumonia.evaluation.card import model_card
from pneumonia.evaluation.plots import draw_plots
from pneumonia.evaluation.report import write_report
from pneumonia.evaluation.stress import BOUNDED, stress_figures
from pneumonia.files import check_replaceable, replace_directory, write_bytes, write_json, write_text

MIN_SUBGROUP = 10
"""Subgroups with fewer test images get no figures of their own: an interval would span almost everything."""


def evaluate(config: Config, bundle: Path, prepared: Path, out: Path) -> dict[str, Any]:
    """Score the test split once; write metrics, predictions, report and model card into `out`; return the metrics.

    Temperature and threshold are the bundle's. Raises DataError where the bundle was trained on another data set than
    `prepared`, because its test images could then have been training images; UsageError where `out` holds something
    other than an evaluation.
    """
    check_replaceable(out, contract.METRICS_FILE)
    opened, data = open_bundle(bundle), load_prepared(prepared)
    if opened.manifest.data["digest"] != data.manifest["digest"]:
        raise DataError(
            f"{prepared}: data digest {data.manifest['digest'][:12]}..., the bundle was trained on "
            f"{opened.manifest.data['digest'][:12]}...; evaluate on the data set that it was trained with"
        )
    # Heavy parts stay out of the module and of everything that only reads figures.
    from pneumonia.architecture import load_model
    from pneumonia.training.dataset import predict_logits
    from pneumonia.training.tracking import track_again

    # Opened first, so that a tracking server that is down shows before the work and not after.
    with track_again(config, opened.manifest.name, opened.digest) as tracker:
        rows, model = data.indices("test"), load_model(bundle)
        logits = predict_logits(model, data, rows, title="test")
        probability = opened.manifest.point.probability(logits)
        metrics = _metrics(config, opened, data, rows, probability)
        if config.evaluation.stress:
            metrics["stress"] = stress_figures(model, data, rows, opened.manifest, config.evaluation)
        with replace_directory(out) as building:
            _write(config, building, opened, data, metrics, logits)
        tracker.log(tracked_figures(metrics))
        # The one file with the names of images stays here unless it is asked for.
        for path in sorted(out.iterdir()):
            if path.name != contract.PREDICTIONS_FILE or config.tracking.predictions:
                tracker.keep(path, f"evaluation/{path.name}" if path.is_dir() else "evaluation")
    return metrics


def tracked_figures(metrics: dict[str, Any]) -> dict[str, float]:
    """Test figures with the ends of their intervals, by the names that a tracker gets: test_recall, test_recall_low.

    Those under changes are stress_crop_10_recall, and stress_worst_recall over the changes of framing.
    """
    named = {
        f"test_{name}{'' if end == 'value' else f'_{end}'}": value
        for name, figure in metrics["test"].items()
        for end, value in figure.items()
    }
    stress = metrics.get("stress", {"changes": {}, "worst": {}})
    for change, item in stress["changes"].items():
        named.update({f"stress_{change}_{name}": item[name]["value"] for name in BOUNDED})
    named.update({f"stress_worst_{name}": item["value"] for name, item in stress["worst"].items()})
    return {name: value for name, value in named.items() if value is not None}


def _write(config: Config, out: Path, bundle: Bundle, data: PreparedData, metrics: dict[str, Any], logits: Any) -> None:
    """Figures, one line an image, plots, report and model card."""
    rows, threshold = data.indices("test"), bundle.manifest.threshold
    probability = bundle.manifest.point.probability(logits)
    plots = draw_plots(data.labels[rows], probability, threshold)
    write_json(out / contract.METRICS_FILE, metrics)
    write_text(out / contract.PREDICTIONS_FILE, _predictions_csv(data, rows, logits, probability, bundle))
    for name, png in plots.items():
        write_bytes(out / contract.PLOTS_DIR / f"{name}.png", png)
    write_report(
        out / contract.REPORT_FILE, metrics, plots, _worst(data, rows, probability, threshold, config.evaluation.worst)
    )
    write_text(out / contract.CARD_FILE, model_card(bundle.manifest, metrics))


def _metrics(config: Config, bundle: Bundle, data: PreparedData, rows: Any, probability: Any) -> dict[str, Any]:
    manifest = bundle.manifest
    labels, patients = data.labels[rows], data.patients[rows]
    evaluation = config.evaluation
    options = (evaluation.bootstrap_samples, evaluation.seed, evaluation.prevalence)

    calibration = calibration_with_intervals(labels, probability, patients, *options[:2])

    def intervals(threshold: float) -> dict[str, Any]:
        found = metrics_with_intervals(labels, probability, threshold, patients, *options) | calibration
        return {name: interval.to_json() for name, interval in found.items()}

    return {
        "model": manifest.name,
        "bundle_digest": bundle.digest,
        "synthetic": manifest.synthetic,
        "source": manifest.data["source"],
        "patients": manifest.data["patients"],
        "split": manifest.data["split"],
        "data_digest": manifest.data["digest"],
        "images": len(rows),
        "images_by_label": {label: int((labels == index).sum()) for index, label in enumerate(contract.LABELS)},
        "patients_count": len(np.unique(patients)),
        "temperature": manifest.temperature,
        "threshold": manifest.threshold,
        "recall_target": manifest.recall_target,
        "prevalence": evaluation.prevalence,
        "test": intervals(manifest.threshold),
        "test_at_half": intervals(0.5),
        "confusion": confusion(labels, probability, manifest.threshold),
        "subgroups": _subgroups(config, data, rows, probability, manifest.threshold),
        "validation": dict(manifest.metrics["val"]),
    }


def _subgroups(config: Config, data: PreparedData, rows: Any, probability: Any, threshold: float) -> dict[str, Any]:
    """Figures by the subgroup that the file name tells (bacteria, virus, IM, NORMAL2, ...).

    A subgroup of one class is set against every test image of the other class, which gives AUROC, precision and the
    rest a meaning: bacteria against all NORMAL, NORMAL2 against all PNEUMONIA.
    """
    groups, labels, patients = np.asarray(data.index["group"])[rows], data.labels[rows], data.patients[rows]
    evaluation = config.evaluation
    found = {}
    for group in np.unique(groups):
        inside = groups == group
        if inside.sum() < MIN_SUBGROUP:
            continue
        classes = np.unique(labels[inside])
        compared = inside | (labels != classes[0]) if len(classes) == 1 else inside
        figures = metrics_with_intervals(
            labels[compared], probability[compared], threshold, patients[compared],
            evaluation.bootstrap_samples, evaluation.seed, evaluation.prevalence,
        )  # fmt: skip
        right = decide(probability[inside], threshold) == labels[inside]
        found[str(group)] = {
            "images": int(inside.sum()),
            "patients": len(np.unique(patients[inside])),
            "accuracy": round(float(right.mean()), 6),
            "against": "itself" if len(classes) > 1 else contract.LABELS[1 - classes[0]],
            "test": {name: interval.to_json() for name, interval in figures.items()},
        }
    return found


def _worst(data: PreparedData, rows: Any, probability: Any, threshold: float, count: int) -> list[dict[str, Any]]:
    """Up to `count` wrong answers, those furthest from the threshold first."""
    wrong = np.flatnonzero(decide(probability, threshold) != data.labels[rows])
    surest = wrong[np.argsort(-np.abs(probability[wrong] - threshold), kind="stable")][:count]
    return [
        {
            "name": Path(data.index["path"][rows[i]]).name,
            "label": contract.LABELS[data.labels[rows[i]]],
            "probability": float(probability[i]),
            "pixels": data.pixels[rows[i]],
        }
        for i in surest
    ]


def _predictions_csv(data: PreparedData, rows: Any, logits: Any, probability: Any, bundle: Bundle) -> str:
    """One line a test image: what it is, what was answered."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # Patients as numbers that mean nothing outside: enough to draw them together, not to know them.
    _, codes = np.unique(data.patients, return_inverse=True)
    names = [
        "row",
        "path",
        "sha256",
        "patient",
        "label",
        "logit_normal",
        "logit_pneumonia",
        "probability",
        "prediction",
    ]
    writer.writerow(names)
    answers = decide(probability, bundle.manifest.threshold)
    for row, pair, p, answer in zip(rows.tolist(), logits.tolist(), probability.tolist(), answers, strict=True):
        label = contract.LABELS[data.labels[row]]
        image = (row, data.index["path"][row], data.index["sha256"][row], codes[row], label)
        writer.writerow([*image, *pair, f"{p:.6f}", contract.LABELS[answer]])
    return text.getvalue()


def read_metrics(evaluation: Path) -> dict[str, Any]:
    """What `evaluate` wrote. Raises DataError where `evaluation` is not its output."""
    try:
        return dict(json.loads((evaluation / contract.METRICS_FILE).read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{evaluation}: no readable {contract.METRICS_FILE} ({error}); run `pneumoctl evaluate`"
        ) from error


def read_metrics_of(bundle: Bundle, evaluation: Path) -> dict[str, Any]:
    """`read_metrics`, and that they are the figures of this very bundle. Raises DataError where they are another's."""
    metrics = read_metrics(evaluation)
    theirs = metrics.get("bundle_digest")
    if theirs != bundle.digest:
        raise DataError(
            f"{evaluation}: evaluates the bundle {str(theirs)[:12] if theirs else 'of an unknown digest'}, not "
            f"{bundle.path} ({bundle.digest[:12]}); give its own with --evaluation, or run `pneumoctl evaluate` for it"
        )
    return metrics


def gate(config: Config, evaluation: Path) -> dict[str, Any]:
    """Compare test figures with the least ones of `config.gate`, and with the champion where there is one.

    Returns {name: {"value", "least"}}, "most" for an upper bound, and, under "champion", what that comparison said.
    Raises GateRefused with every reason, DataError where the champion was evaluated on other images.
    """
    metrics = read_metrics(evaluation)
    least = {name: getattr(config.gate, name) for name in ("accuracy", "precision", "recall", "f1", "recall_low")}
    least |= {name: bound for name in ("specificity", "auroc") if (bound := getattr(config.gate, name)) is not None}
    most = {} if config.gate.ece is None else {"ece": config.gate.ece}
    reasons = refusals(metrics["test"], least, most)
    stress, why = _stress_verdict(config, metrics)
    reasons += why
    if config.gate.champion is None:
        champion: dict[str, Any] = {"compared": False, "why": "no champion: gate.champion is null"}
    else:
        difference, split = _against(config, evaluation, metrics, Path(config.gate.champion))
        reasons += worse_than_champion(difference, config.gate.champion_margin)
        champion = {"compared": True, "difference": {name: gap.to_json() for name, gap in difference.items()},
                    "discordant": split}  # fmt: skip
    if reasons:
        raise GateRefused(reasons)
    figures = {
        name: {"value": metrics["test"][name.removesuffix("_low")]["low" if name.endswith("_low") else "value"],
               "least": bound}
        for name, bound in least.items()
    }  # fmt: skip
    figures |= {name: {"value": metrics["test"][name]["value"], "most": bound} for name, bound in most.items()}
    return {**figures, **stress, "champion": champion}


def _stress_verdict(config: Config, metrics: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Figures under the worst change of framing beside the least ones asked for, and the reasons to refuse.

    Drawn images have no lungs to look at, so nothing is asked of a model of them.
    """
    least = {name: getattr(config.gate, f"stress_{name}") for name in BOUNDED}
    if metrics["synthetic"]:
        return {}, []
    worst = metrics.get("stress", {}).get("worst", {})
    asked = {f"stress_{name}": {**worst[name], "least": bound}
             for name, bound in least.items() if bound is not None and name in worst}  # fmt: skip
    return asked, stress_refusals(worst, least)


def _against(
    config: Config, evaluation: Path, metrics: dict[str, Any], champion: Path
) -> tuple[dict[str, Interval], dict[str, dict[str, int]]]:
    """Differences to the champion on the same test images, and how many of them only one of the two answers rightly."""
    theirs = read_metrics(champion)
    if theirs["data_digest"] != metrics["data_digest"]:
        raise DataError(
            f"gate.champion={champion}: evaluated on data {theirs['data_digest'][:12]}..., this model on "
            f"{metrics['data_digest'][:12]}...; evaluate the champion on the same prepared data set first"
        )
    ours, other = _read_predictions(evaluation), _read_predictions(champion)
    # By image, never by row: the data digest allows another order, which moved or renamed files bring.
    if {key: row[0] for key, row in ours.items()} != {key: row[0] for key, row in other.items()}:
        raise DataError(
            f"gate.champion={champion}: its {contract.PREDICTIONS_FILE} has other images or labels than that of "
            f"{evaluation}; evaluate both again on the same prepared data set"
        )
    labels, patients, probability = map(np.array, zip(*ours.values(), strict=True))
    forms = ((probability, metrics["threshold"]), (np.array([other[key][2] for key in ours]), theirs["threshold"]))
    options = (config.evaluation.bootstrap_samples, config.evaluation.seed)
    return paired_difference(labels, *forms, patients, *options), discordant(labels, *forms)


def _read_predictions(evaluation: Path) -> dict[str, tuple[int, str, float]]:
    """Label, patient and probability by the image's SHA-256. Raises DataError where the file cannot be read so."""
    try:
        with (evaluation / contract.PREDICTIONS_FILE).open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        if rows and "sha256" not in rows[0]:
            raise DataError(
                f"{evaluation / contract.PREDICTIONS_FILE}: has no column sha256, an older release wrote it; "
                "evaluate that bundle again with this one"
            )
        return {
            row["sha256"]: (contract.LABELS.index(row["label"]), row["patient"], float(row["probability"]))
            for row in rows
        }
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{evaluation}: no readable {contract.PREDICTIONS_FILE} ({error!r}); evaluate again") from error
