"""Fetch: the source's images, and the settings that every later step composes its configuration from."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def fetch(
    experiment: str,
    source: str,
    data_root: str,
    overrides: list[str],
    recall_target: float,
    gate_accuracy: float,
    gate_precision: float,
    gate_recall: float,
    gate_f1: float,
    gate_recall_low: float,
    tracking_uri: str,
    num_nodes: int,
    gpus: int,
    tensorrt: bool,
    deploy: bool,
    release_root: str,
    release_volume: str,
    backend: str,
    library_version: str,
    fetched: Output[Dataset],
) -> list[str]:
    """Makes the images of a source available, and turns the pipeline's parameters into the settings of later steps.

    Fails with 2 for an unknown key, choice or value; 3 for a folder that is not there or holds no X-rays; 4 where a
    source needs credentials or a network that are not there, or the model to start from is on no hub that answers.
    Never cached: what a folder holds is no part of a cache key.

    Args:
        experiment: `local`, `smoke`, `vit_base` or `dinov2_small`.
        source: where the images come from, such as `phantom` or `folder`.
        data_root: folder of X-rays for `source=folder`; empty otherwise.
        overrides: configuration, such as `training.num_train_epochs=5`.
        recall_target: recall that the threshold is chosen for, on validation.
        gate_accuracy: least test accuracy.
        gate_precision: least test precision.
        gate_recall: least test recall.
        gate_f1: least test F1.
        gate_recall_low: least lower end of the 95 % interval of test recall.
        tracking_uri: MLflow server; `local` for a file, `null` for none.
        num_nodes: nodes to train on.
        gpus: GPUs of each of them; 0 trains on the CPU of one.
        tensorrt: whether an engine will be built. These five are only checked, before hours of work.
        deploy: whether the release will be brought to KServe.
        release_root: where it will be published.
        release_volume: PersistentVolumeClaim for it, instead.
        backend: Triton backend that will run the model.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        fetched: `source.json`, and the images where the source makes them.

    Returns:
        The settings.
    """
    from pneumonia.pipelines.step import check_release, fetch_images, settings_of, step

    with step("fetch", library_version):
        from pathlib import Path

        check_release(backend, tensorrt, deploy, release_root, release_volume)
        settings = settings_of(
            experiment,
            source,
            data_root,
            overrides,
            recall_target=recall_target,
            gate_accuracy=gate_accuracy,
            gate_precision=gate_precision,
            gate_recall=gate_recall,
            gate_f1=gate_f1,
            gate_recall_low=gate_recall_low,
            tracking_uri=tracking_uri,
            num_nodes=num_nodes,
            gpus=gpus,
        )
        fetch_images(settings, Path(fetched.path))
    return settings
