"""Evaluate: the figures on the test split, scored once, and the report."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def evaluate(
    settings: list[str],
    library_version: str,
    trained: Input[Model],
    prepared: Input[Dataset],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
):
    from pneumonia.pipelines.step import show_evaluation, step

    with step("evaluate", library_version):
        from pathlib import Path

        from pneumonia.config.compose import compose
        from pneumonia.evaluation.evaluate import evaluate

        evaluate(compose(settings), Path(trained.path), Path(prepared.path), Path(evaluation.path))
        show_evaluation(Path(evaluation.path), metrics, Path(report.path))
