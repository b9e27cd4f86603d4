"""Prepare: decoded pixels, patients and the split."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def prepare(settings: list[str], library_version: str, fetched: Input[Dataset], prepared: Output[Dataset]):
    from pneumonia.pipelines.step import step

    with step("prepare", library_version):
        from pathlib import Path

        from pneumonia.config.compose import compose
        from pneumonia.data.prepare import prepare

        prepare(compose(settings), Path(fetched.path), Path(prepared.path))
