"""TensorRT: the bundle with a float16 graph and the engine built from it, on the GPU that will serve."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def build_tensorrt(
    settings: list[str],
    data_digest: str,
    library_version: str,
    bundle: Input[Model],
    prepared: Input[Dataset],
    built: Output[Model],
):
    """Adds a float16 graph and a TensorRT engine built from it on this step's GPU, and checks both against ONNX.

    An engine runs only with the TensorRT release and the kind of GPU it was built with; the bundle names both. Fails
    with 4 without TensorRT or a GPU, 5 where a form disagrees. Not run on a GPU.

    Args:
        settings: as `fetch` gave them.
        data_digest: digest of the prepared data; part of the cache key.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        bundle: from export_int8.
        prepared: from prepare.
        built: the bundle with `model.fp16.onnx` and `model.engine`.
    """
    from pneumonia.pipelines.show import show_bundle
    from pneumonia.pipelines.step import step

    with step("build_tensorrt", library_version):
        from pathlib import Path

        from pneumonia.config.compose import compose
        from pneumonia.export.build_engine import build_engine

        inputs = (compose(settings), Path(bundle.path), Path(prepared.path))
        show_bundle(build_engine(*inputs, Path(built.path)), built)
