"""Export: the final bundle, with the ONNX graph proven equal to the PyTorch model."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def export_onnx(
    settings: list[str],
    data_digest: str,
    library_version: str,
    verdict: Input[Artifact],
    trained: Input[Model],
    evaluation: Input[Artifact],
    prepared: Input[Dataset],
    bundle: Output[Model],
):
    """Exports ONNX, proves that it answers as PyTorch does, and writes the final bundle.

    Fails with 5 where the two forms of the model disagree; 3 where the inputs are not of one data set,
    or the evaluation is another bundle's.

    Args:
        settings: as `fetch` gave them.
        data_digest: digest of the prepared data; part of the cache key.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        verdict: from gate; not read, its being there is what counts.
        trained: from train.
        evaluation: from evaluate.
        prepared: from prepare.
        bundle: the trained bundle with `model.onnx`, `probe.json` and the test figures.
    """
    from pneumonia.pipelines.show import show_bundle
    from pneumonia.pipelines.step import step

    with step("export_onnx", library_version):
        from pathlib import Path

        from pneumonia.config.compose import compose
        from pneumonia.export.to_onnx import export_onnx

        inputs = (Path(trained.path), Path(evaluation.path), Path(prepared.path))
        show_bundle(export_onnx(compose(settings), *inputs, Path(bundle.path)), bundle)
