"""Export: the final bundle, with the ONNX graph proven equal to the PyTorch model."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def export_onnx(
    settings: list[str],
    library_version: str,
    # Not read: a refused gate has no verdict, and without it this step cannot start.
    verdict: Input[Artifact],
    trained: Input[Model],
    evaluation: Input[Artifact],
    prepared: Input[Dataset],
    bundle: Output[Model],
):
    from pneumonia.pipelines.step import step

    with step("export_onnx", library_version):
        from pathlib import Path

        from pneumonia.config.compose import compose
        from pneumonia.export.to_onnx import export_onnx

        inputs = (Path(trained.path), Path(evaluation.path), Path(prepared.path))
        export_onnx(compose(settings), *inputs, Path(bundle.path))
