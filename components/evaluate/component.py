"""Evaluate: the figures on the test split, scored once, and the report."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def evaluate(
    baseline: bool,
    library_version: str,
    settings: Input[Artifact],
    trained: Input[Model],
    prepared: Input[Dataset],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    curves: Output[ClassificationMetrics],
    report: Output[HTML],
):
    """Scores the test split once.

    With `baseline` a logistic regression on fixed features is fitted and scored too, to compare the model with. Fails
    with 3 where the bundle was trained on other data; with `baseline` also with 4 where the network of `model.baseline`
    is neither a folder nor on a hub that answers.

    Args:
        baseline: whether to fit a logistic regression.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        settings: from fetch.
        trained: from train.
        prepared: from prepare.
        evaluation: `metrics.json`, `predictions.csv`, `report.html`, plots, model card and, if asked, `baseline.json`.
        metrics: the test figures, for the user interface; those of the baseline as `baseline_...`.
        curves: ROC curve and confusion matrix, for the user interface.
        report: the report, for the user interface.
    """
    from pneumonia.pipelines.show import show_evaluation
    from pneumonia.pipelines.step import step

    with step("evaluate", library_version):
        from pathlib import Path

        from pneumonia.pipelines.tasks import evaluate_trained

        inputs = (Path(settings.path), Path(trained.path), Path(prepared.path))
        evaluate_trained(*inputs, Path(evaluation.path), baseline)
        show_evaluation(Path(evaluation.path), metrics, curves, Path(report.path))
