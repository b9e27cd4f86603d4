"""The model card: what a model is, what it was measured on, and what it must not be used for (Mitchell et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pneumonia.bundle import Manifest
from pneumonia.evaluation.stress import BOUNDED

_NAMES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall (sensitivity)",
    "specificity": "specificity",
    "f1": "F1",
    "auroc": "AUROC",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "log_loss": "log loss",
    "calibration_slope": "calibration slope (1 is right, less is too sure)",
    "calibration_intercept": "calibration intercept (0 is right, more is too low)",
    "ppv": "positive predictive value",
    "npv": "negative predictive value",
}


_ORIGIN = {
    "phantom": "Trained and tested on drawn images alone.",
    "folder": "Trained and tested on images of one folder that its user labelled; not tested on any other.",
}
"""What the images were, by data source."""
_PUBLIC = (
    "Trained on X-rays of children of one to five years from one hospital (Guangzhou Women and Children's Medical "
    'Center; "Chest X-Ray Images (Pneumonia)", Kermany, Zhang and Goldbaum 2018, doi:10.17632/rscbjbr9sj.2, licence '
    "CC BY 4.0); not tested elsewhere."
)


def origin_of(source: str) -> str:
    """What is known of the images of a data source, for whoever reads the figures."""
    return _ORIGIN.get(source, _PUBLIC)


def model_card(manifest: Manifest, metrics: dict[str, Any]) -> str:
    """Markdown from a bundle's manifest and the metrics of its evaluation."""

    groups = [f"- {name}: {item['images']} images, {item['accuracy']:.4f} answered rightly"
              for name, item in metrics["subgroups"].items()]  # fmt: skip
    return "\n".join(
        [
            *_head(manifest, "validation"),
            "## Data\n",
            f"Source {manifest.data['source']}, digest {manifest.data['digest']}, split "
            f"{manifest.data['split']['strategy']}; {metrics['images']} test images of {metrics['patients_count']} "
            "patients.\n",
            "## Test\n",
            f"At the served threshold; 95 % intervals bootstrapped over patients; predictive values at a prevalence of "
            f"{metrics['prevalence']}.\n",
            *_table(metrics["test"]),
            *groups,
            "",
            *_stress(metrics.get("stress")),
        ]
    )


def _stress(stress: Mapping[str, Any] | None) -> list[str]:
    """What changes of the frame, the exposure and the file do to the answers; nothing where that was not measured."""
    if stress is None:
        return []
    rows = [
        f"| {item['title']} | " + " | ".join(_show(item[name]["value"]) for name in BOUNDED) + " |"
        for item in stress["changes"].values()
    ]
    return [
        "## Under changes that leave the label as it is\n",
        f"{stress['images']} test images at the served threshold. A model of the lungs alone would not care for",
        "crops, borders and bars. With the centre blanked hardly any lung is left: what it",
        "still knows, the frame told.\n",
        "| change | " + " | ".join(BOUNDED) + " |",
        "|---" * (len(BOUNDED) + 1) + "|",
        *rows,
        "",
    ]


def calibration_card(manifest: Manifest) -> str:
    """Markdown for a bundle that `pneumoctl calibrate` wrote: no figure of the model's former threshold."""
    site = manifest.data.get("calibrated_on")
    trained = f"Trained on source {manifest.data['source']}, digest {manifest.data['digest']}."
    share = f"Probabilities are for a place where {manifest.data['prevalence']:.4g} of the images are PNEUMONIA."
    if "calibration" not in manifest.metrics or site is None:
        before = manifest.data["prevalence_before"]
        moved = (
            f"They were moved there from {before:.4g} without images, and the threshold with them: nothing measured it."
        )
        return "\n".join([*_head(manifest, "the images before"), "## Data\n", f"{trained}\n", f"{share} {moved}\n"])
    return "\n".join(
        [
            *_head(manifest, "the images of the calibration"),
            "## Data\n",
            f"{trained} Temperature, offset and threshold fitted on source {site['source']}, digest {site['digest']}; "
            f"{sum(site['counts']['by_split'].values())} images of {site['counts']['patients']} patients. {share}\n",
            "## Calibration\n",
            "At the served threshold, **on the very images that chose it**: they are no test, and other images will be",
            "answered less well. The figures of the former test do not hold for this threshold. 95 % intervals",
            "bootstrapped over patients.\n",
            *_table(manifest.metrics["calibration"]),
        ]
    )


def _head(manifest: Manifest, chosen_on: str) -> list[str]:
    """Name, warnings, use and model."""
    warnings = []
    if manifest.synthetic:
        warnings.append("**Synthetic: trained on images that a program drew. It knows nothing of real X-rays.**\n")
    if manifest.data["patients"] != "named":
        warnings.append("**Patients are unknown, so images of one patient may be on both sides of the split.**\n")
    config = manifest.config.get("model", {})
    return [
        f"# {manifest.name}\n",
        *warnings,
        "Chest X-ray in, `NORMAL` or `PNEUMONIA` with a calibrated probability out.\n",
        "## Not a medical device\n",
        "Not cleared, certified or clinically validated. No diagnosis or treatment may rest on it.",
        f"{origin_of(manifest.data['source'])} Other patients, devices and hospitals were not tested, and the share of",
        "pneumonia among the images is that of the collection and not of a clinic.\n",
        "## Model\n",
        f"Architecture {config.get('architecture', '?')}, start from {config.get('checkpoint') or 'scratch'}; "
        f"temperature {manifest.temperature:.4f}, offset {manifest.offset:.4f}, threshold {manifest.threshold:.4f} for "
        f"a recall of {manifest.recall_target} on {chosen_on}. An answer is marked uncertain where neither class is "
        f"{manifest.sure:g} probable.\n",
    ]


def _show(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def interval(figure: Mapping[str, float | None]) -> str:
    """The ends of a figure's interval; a dash where it has none."""
    ends = (figure["low"], figure["high"])
    return "-" if ends == (None, None) else " to ".join(map(_show, ends))


def _table(figures: Mapping[str, Any]) -> list[str]:
    """Figures with their intervals."""
    rows = [f"| {_NAMES[name]} | {_show(item['value'])} | {interval(item)} |" for name, item in figures.items()]
    return ["| figure | value | 95 % interval |", "|---|---|---|", *rows, ""]
