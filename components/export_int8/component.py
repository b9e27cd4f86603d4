"""INT8: the bundle with a quantised graph for processors, where the configuration asks for it."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def export_int8(
    settings: list[str],
    data_digest: str,
    library_version: str,
    bundle: Input[Model],
    prepared: Input[Dataset],
    quantized: Output[Model],
):
    """Adds a graph quantised to INT8, checked against the float32 one, or passes the bundle on.

    Fails with 5 where the quantised graph answers otherwise than the model.

    Args:
        settings: as `fetch` gave them.
        data_digest: digest of the prepared data; part of the cache key.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        bundle: from export_onnx.
        prepared: from prepare.
        quantized: the bundle, with `model.int8.onnx` where `export.int8` is true.
    """
    from pneumonia.pipelines.show import show_bundle
    from pneumonia.pipelines.step import step

    with step("export_int8", library_version):
        from pathlib import Path

        from pneumonia.config.compose import compose
        from pneumonia.export.to_int8 import export_int8

        inputs = (compose(settings), Path(bundle.path), Path(prepared.path))
        show_bundle(export_int8(*inputs, Path(quantized.path)), quantized)
