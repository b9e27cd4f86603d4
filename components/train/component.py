"""Train: a bundle with weights, and temperature and threshold chosen on validation."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def train(
    nodes: dict,
    library_version: str,
    settings: Input[Artifact],
    prepared: Input[Dataset],
    trained: Output[Model],
):
    """Trains, keeps the best epoch, and chooses temperature and threshold on validation. Test images are not looked at.

    On the CPU, on one GPU, or, with `nodes`, by torchrun in a TrainJob of Kubeflow Trainer whose log this step shows.
    Prepared data and bundle travel to its nodes through a shared volume, in a folder that is removed at the end, as is
    the TrainJob, whatever happens. The batch of `training.per_device_train_batch_size` is that of one GPU. Fails with 5
    where no threshold meets `evaluation.recall_target`; 4 where a tracking server does not answer, or the cluster has
    no Kubeflow Trainer or lets this step not use it; 1 with the TrainJob's own reason. A TrainJob has not run on a
    cluster.

    Args:
        nodes: from check: of a TrainJob; `{}` trains in this step.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        settings: from fetch.
        prepared: from prepare.
        trained: bundle with `model.safetensors` and `config.json`.
    """
    from pneumonia.pipelines.show import show_bundle
    from pneumonia.pipelines.step import step

    with step("train", library_version):
        from pathlib import Path

        from pneumonia.pipelines.tasks import train_anywhere

        inputs = (Path(settings.path), Path(prepared.path))
        show_bundle(train_anywhere(*inputs, Path(trained.path), nodes), trained)
