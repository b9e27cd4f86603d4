"""INT8: the bundle with a quantised graph for processors, where it is asked for."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def export_int8(
    settings: list[str],
    data_digest: str,
    library_version: str,
    apply: bool,
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
        apply: whether INT8 is asked for.
        bundle: from export_onnx.
        prepared: from prepare.
        quantized: the bundle, with `model.int8.onnx` where `apply`.
    """
    from pneumonia.pipelines.show import show_bundle
    from pneumonia.pipelines.step import step

    with step("export_int8", library_version):
        from pathlib import Path

        from pneumonia.pipelines.step import quantize_or_pass

        made = quantize_or_pass(apply, settings, Path(bundle.path), Path(prepared.path), Path(quantized.path))
        show_bundle(made, quantized)
