"""Train: a bundle with weights, and temperature and threshold chosen on validation."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def train(settings: list[str], library_version: str, prepared: Input[Dataset], trained: Output[Model]):
    from pneumonia.pipelines.step import step

    with step("train", library_version):
        from pathlib import Path

        from pneumonia.config.compose import compose
        from pneumonia.training.train import train

        train(compose(settings), Path(prepared.path), Path(trained.path))
