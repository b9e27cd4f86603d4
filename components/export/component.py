"""Export: the final bundle, with every form of the model proven equal to the PyTorch model."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def export(
    verdict: str,
    tensorrt: bool,
    library_version: str,
    settings: Input[Artifact],
    trained: Input[Model],
    evaluation: Input[Artifact],
    prepared: Input[Dataset],
    bundle: Output[Model],
    metrics: Output[Metrics],
    report: Output[HTML],
):
    """Exports ONNX and what else is asked for, proves that each form answers as PyTorch does, and writes the bundle.

    INT8 where `export.int8` is true; with `tensorrt` a float16 graph and an engine built from it on this step's GPU,
    which runs only with the TensorRT release and the kind of GPU it was built with. Every form in the bundle scores the
    probe's images once more at the end. Fails with 5 where a form disagrees; 3 where the inputs are not of one data
    set, or the evaluation is another bundle's; 4 without TensorRT or a GPU. Not run on a GPU.

    Args:
        verdict: from gate; not read, its being there is what counts.
        tensorrt: whether to build an engine.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        settings: from fetch.
        trained: from train.
        evaluation: from evaluate.
        prepared: from prepare.
        bundle: the trained bundle with `model.onnx`, the other forms, `probe.json` and the test figures.
        metrics: agreement and largest difference of each form, for the user interface.
        report: the same as a table.
    """
    from pneumonia.pipelines.show import show_export
    from pneumonia.pipelines.step import step

    with step("export", library_version):
        from pathlib import Path

        from pneumonia.pipelines.tasks import export_forms

        inputs = [Path(item.path) for item in (settings, trained, evaluation, prepared)]
        show_export(export_forms(*inputs, Path(bundle.path), tensorrt), bundle, metrics, Path(report.path))
