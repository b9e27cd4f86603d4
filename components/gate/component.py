"""Gate: fails inside its own step where the test figures are too low; everything after it consumes its verdict."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def gate(
    library_version: str, settings: Input[Artifact], evaluation: Input[Artifact], verdict: Output[Artifact]
) -> str:
    """Compares the test figures with the least ones of `gate.*`.

    It fails inside its own step, with every reason in its log; `export` consumes the verdict, so that nothing after a
    refused gate can start. Fails with 5 and the reasons. Never cached.

    Args:
        library_version: version of `pneumonia` that the pipeline was compiled for.
        settings: from fetch.
        evaluation: from evaluate.
        verdict: JSON: each figure beside the least one allowed.

    Returns:
        The verdict's digest: the same verdict lets the cache answer what is after it, a new file of it would not.
    """
    from pneumonia.pipelines.step import step

    with step("gate", library_version):
        from pathlib import Path

        from pneumonia.config.compose import load
        from pneumonia.evaluation.evaluate import gate
        from pneumonia.files import sha256_file, write_json

        write_json(Path(verdict.path), gate(load(Path(settings.path)), Path(evaluation.path)))
        return sha256_file(Path(verdict.path))
