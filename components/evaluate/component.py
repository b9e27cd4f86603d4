"""Evaluate: the figures on the test split, scored once, and the report."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def evaluate(
    settings: list[str],
    data_digest: str,
    library_version: str,
    trained: Input[Model],
    prepared: Input[Dataset],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    curves: Output[ClassificationMetrics],
    report: Output[HTML],
):
    """Scores the test split once.

    Fails with 3 where the bundle was trained on other data.

    Args:
        settings: as `fetch` gave them.
        data_digest: digest of the prepared data; part of the cache key.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        trained: from train.
        prepared: from prepare.
        evaluation: `metrics.json`, `predictions.csv`, `report.html`, plots and model card.
        metrics: the test figures, for the user interface.
        curves: ROC curve and confusion matrix, for the user interface.
        report: the report, for the user interface.
    """
    from pneumonia.pipelines.show import show_evaluation
    from pneumonia.pipelines.step import step

    with step("evaluate", library_version):
        from pathlib import Path

        from pneumonia.config.compose import compose
        from pneumonia.evaluation.evaluate import evaluate

        evaluate(compose(settings), Path(trained.path), Path(prepared.path), Path(evaluation.path))
        show_evaluation(Path(evaluation.path), metrics, curves, Path(report.path))
