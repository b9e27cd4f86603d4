"""Train: a bundle with weights, and temperature and threshold chosen on validation."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def train(
    settings: list[str],
    data_digest: str,
    library_version: str,
    prepared: Input[Dataset],
    trained: Output[Model],
):
    """Trains, keeps the best epoch, and chooses temperature and threshold on validation. Test images are not looked at.

    Fails with 5 where no threshold meets `evaluation.recall_target`; 4 where a tracking server does not answer.

    Args:
        settings: as `fetch` gave them.
        data_digest: digest of the prepared data; part of the cache key.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        prepared: from prepare.
        trained: bundle with `model.safetensors` and `config.json`.
    """
    from pneumonia.pipelines.show import show_bundle
    from pneumonia.pipelines.step import step

    with step("train", library_version):
        from pathlib import Path

        from pneumonia.config.compose import compose
        from pneumonia.training.train import train

        show_bundle(train(compose(settings), Path(prepared.path), Path(trained.path)), trained)
