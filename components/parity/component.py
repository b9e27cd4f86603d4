"""Parity: every form of the model in the bundle scores the same images before anything is published."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def parity(
    data_digest: str,
    library_version: str,
    bundle: Input[Model],
    prepared: Input[Dataset],
    checked: Output[Model],
    metrics: Output[Metrics],
    report: Output[HTML],
):
    """Lets every form of the model in the bundle score the probe's images, and compares them with PyTorch's answers.

    Fails with 5 where a form disagrees, 4 where the bundle has an engine and this step no GPU for it.

    Args:
        data_digest: digest of the prepared data; part of the cache key.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        bundle: from export_int8 or build_tensorrt.
        prepared: from prepare.
        checked: the bundle, unchanged: what is published consumes it.
        metrics: agreement and largest difference of each form, for the user interface.
        report: the same as a table.
    """
    from pneumonia.pipelines.show import show_bundle, show_parity
    from pneumonia.pipelines.step import step

    with step("parity", library_version):
        from pathlib import Path

        from pneumonia.bundle import extend_bundle, open_bundle
        from pneumonia.export.forms import check_forms

        found = check_forms(Path(bundle.path), Path(prepared.path))
        made = extend_bundle(open_bundle(Path(bundle.path)), Path(checked.path), {})
        show_bundle(made, checked)
        show_parity(made.model_id, found, metrics, Path(report.path))
