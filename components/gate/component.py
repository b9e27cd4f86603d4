"""Gate: fails inside its own step where the test figures are too low; everything after it consumes its verdict."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def gate(settings: list[str], library_version: str, evaluation: Input[Artifact], verdict: Output[Artifact]):
    """Compares the test figures with the least ones of `gate.*`.

    It fails inside its own step, with every reason in its log; `export_onnx` consumes the verdict, so that nothing
    after a refused gate can start. Fails with 5 and the reasons. Never cached.

    Args:
        settings: as `fetch` gave them.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        evaluation: from evaluate.
        verdict: JSON: each figure beside the least one allowed.
    """
    from pneumonia.pipelines.step import step

    with step("gate", library_version):
        from pathlib import Path

        from pneumonia.config.compose import compose
        from pneumonia.evaluation.evaluate import gate
        from pneumonia.files import sha256_file, write_json

        write_json(Path(verdict.path), gate(compose(settings), Path(evaluation.path)))
        verdict.metadata["digest"] = sha256_file(Path(verdict.path))
