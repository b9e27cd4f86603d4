"""Baseline: a logistic regression on fixed features, to compare with."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def baseline(
    settings: list[str],
    data_digest: str,
    library_version: str,
    prepared: Input[Dataset],
    figures: Output[Artifact],
    metrics: Output[Metrics],
):
    """Fits a logistic regression on fixed features and scores it on the test split, to compare the model with.

    Fails with 4 where the network of `model.baseline` is neither a folder nor on a hub that answers.

    Args:
        settings: as `fetch` gave them.
        data_digest: digest of the prepared data; part of the cache key.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        prepared: from prepare.
        figures: `baseline.json`.
        metrics: its test figures, for the user interface.
    """
    from pneumonia.pipelines.show import log_figures
    from pneumonia.pipelines.step import step

    with step("baseline", library_version):
        from pathlib import Path

        from pneumonia.config.compose import compose
        from pneumonia.training.baseline import train_baseline

        log_figures(metrics, train_baseline(compose(settings), Path(prepared.path), Path(figures.path))["test"])
