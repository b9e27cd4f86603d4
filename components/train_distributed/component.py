"""Train on several GPUs or nodes: a TrainJob of Kubeflow Trainer, followed to its end."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def train_distributed(
    settings: list[str],
    data_digest: str,
    library_version: str,
    num_nodes: int,
    gpus: int,
    volume_claim: str,
    image: str,
    tolerations: list,
    node_selector: dict,
    prepared: Input[Dataset],
    trained: Output[Model],
):
    """Trains as `train` does, by torchrun in a TrainJob of Kubeflow Trainer, and shows the log of its first node.

    Prepared data and bundle travel through a shared volume, in a folder that is removed at the end, as is the
    TrainJob, whatever happens. The batch of `training.per_device_train_batch_size` is that of one GPU. Fails as
    `train` does; with 4 where the cluster has no Kubeflow Trainer or this step may not use it; 1 with the job's own
    reason where it fails. Not run on a cluster.

    Args:
        settings: as `fetch` gave them.
        data_digest: digest of the prepared data; part of the cache key.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        num_nodes: nodes to train on.
        gpus: GPUs of each node.
        volume_claim: PersistentVolumeClaim of access mode ReadWriteMany, mounted at /workspace here and in every node.
        image: what the nodes run: the step image with CUDA.
        tolerations: of the nodes' pods, beside that of the taint nvidia.com/gpu.
        node_selector: labels that the nodes must have.
        prepared: from prepare.
        trained: bundle with `model.safetensors` and `config.json`.
    """
    from pneumonia.pipelines.show import show_bundle
    from pneumonia.pipelines.step import step

    with step("train_distributed", library_version):
        from pathlib import Path

        from pneumonia.training.trainjob import JobShape, train_on_cluster

        shape = JobShape(num_nodes, gpus, image, volume_claim, tuple(tolerations), node_selector)
        show_bundle(train_on_cluster(settings, Path(prepared.path), Path(trained.path), shape), trained)
