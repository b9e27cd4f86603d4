"""Check: the first step, which looks at everything that could only fail hours later, and places the others."""

from typing import NamedTuple

from kfp import dsl

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def check(
    experiment: str,
    source: str,
    data_root: str,
    overrides: list[str],
    gate: dict,
    tracking_uri: str,
    data_volume: str,
    release_root: str,
    release_volume: str,
    s3_endpoint: str,
    num_nodes: int,
    gpus: int,
    gpu_tolerations: list,
    gpu_node_selector: dict,
    gpu_autoscaling: bool,
    training_volume: str,
    cpu_image: str,
    cuda_image: str,
    tensorrt: bool,
    backend: str,
    deploy: bool,
    namespace: str,
    inference_service: str,
    cpu_request: str,
    cpu_limit: str,
    memory_request: str,
    memory_limit: str,
    training_cpu_request: str,
    training_cpu_limit: str,
    training_memory_request: str,
    training_memory_limit: str,
    library_version: str,
) -> NamedTuple(
    "Outputs",
    [
        ("data_digest", str),
        ("overrides", list),
        ("train_image", str),
        ("train_gpus", str),
        ("train_tolerations", list),
        ("train_node_selector", dict),
        ("train_nodes", dict),
        ("export_image", str),
        ("export_gpus", str),
        ("export_tolerations", list),
        ("export_node_selector", dict),
    ],
):
    """Refuses a run that cannot end well before any work, and says where the later steps run.

    Looks at the configuration, the folder of images, the model to start from, the tracking server and the bucket; on a
    cluster also at volumes, GPU nodes, the rights of its account and the InferenceService. Fails with 2 for what was
    asked for, 3 for the images, 4 for what the cluster does not give. Never cached: it is what the cache of the other
    steps rests on.

    Args:
        experiment: `local`, `smoke`, `vit_base` or `dinov2_small`.
        source: where the images come from, such as `phantom` or `folder`.
        data_root: folder of X-rays for `source=folder`; empty otherwise.
        overrides: configuration, such as `training.num_train_epochs=5`.
        gate: least test figures in place of the experiment's, such as `{"recall": 0.95}`.
        tracking_uri: MLflow server, `null` for none; empty for what the experiment says.
        data_volume: PersistentVolumeClaim with X-rays; empty for none.
        release_root: where the release will be published.
        release_volume: PersistentVolumeClaim for it, instead.
        s3_endpoint: address of the object store; empty for the environment's.
        num_nodes: nodes to train on.
        gpus: GPUs of each of them; 0 trains on the CPU of one.
        gpu_tolerations: of pods on GPU nodes, beside that of the taint nvidia.com/gpu.
        gpu_node_selector: labels that GPU nodes must have.
        gpu_autoscaling: whether such nodes come when a pod waits for them; they are not looked for then.
        training_volume: PersistentVolumeClaim (ReadWriteMany) that a TrainJob's data travels through.
        cpu_image: step image of tasks without a GPU.
        cuda_image: step image of tasks with one, and of a TrainJob's nodes.
        tensorrt: whether an engine will be built.
        backend: Triton backend that will run the model.
        deploy: whether the release will be brought to KServe.
        namespace: of the InferenceService.
        inference_service: its name.
        cpu_request: CPU of each step but training and export; these eight are only checked.
        cpu_limit: most CPU of it.
        memory_request: memory of it.
        memory_limit: most memory of it.
        training_cpu_request: CPU of training and export.
        training_cpu_limit: most CPU of them.
        training_memory_request: memory of them.
        training_memory_limit: most memory of them.
        library_version: version of `pneumonia` that the pipeline was compiled for.

    Returns:
        data_digest: changes when the images or the patients' salt change.
        overrides: the parameters of the configuration as overrides of it, which fetch turns into the settings.
        train_image: image of the training.
        train_gpus: its GPUs; empty for none.
        train_tolerations: of its pod.
        train_node_selector: of its pod.
        train_nodes: nodes of a TrainJob; `{}` where the step trains itself.
        export_image: image of the export.
        export_gpus: its GPUs; empty for none.
        export_tolerations: of its pod.
        export_node_selector: of its pod.
    """
    given = dict(locals())

    from pneumonia.pipelines.step import step

    with step("check", library_version):
        from pneumonia.pipelines.settings import overrides_of
        from pneumonia.pipelines.start import start

        said = overrides_of(experiment, source, data_root, overrides, gate, tracking_uri)
        return start(said, given)
