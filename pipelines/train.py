"""The training pipeline: wiring only. `python pipelines/train.py` compiles it to train.yaml beside this file."""

import sys
from pathlib import Path

from kfp import compiler, dsl

# Running this file puts pipelines/ on the path; the components lie beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from components.check.component import check
from components.cluster import RUN_S, SMALL, TRAINING_S, at_place, with_resources, with_run, with_secrets
from components.confirm.component import confirm
from components.deploy.component import deploy as deploy_release
from components.evaluate.component import evaluate
from components.export.component import export
from components.fetch.component import fetch
from components.gate.component import gate as pass_gate
from components.image import CUDA_IMAGE, STEP_IMAGE
from components.notify.component import notify
from components.prepare.component import prepare
from components.publish.component import publish
from components.train.component import train
from pneumonia import __version__

PLACE = ("image", "gpus", "tolerations", "node_selector")
"""What `check` says of where training and export run, as outputs train_image, export_image and so on."""


def uncached(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """The task, done anew in every run."""
    return task.set_caching_options(enable_caching=False)


@dsl.pipeline(
    name="pneumonia-train",
    description="X-rays to a served model, or to the reason why not.",
    pipeline_config=dsl.PipelineConfig(active_deadline_seconds=RUN_S),
)
def train_pipeline(
    experiment: str = "local",
    overrides: list[str] = [],  # noqa: B006  compiled to a constant, never shared
    source: str = "phantom",
    data_root: str = "",
    data_volume: str = "",
    gate: dict = {},  # noqa: B006
    tracking_uri: str = "",
    release_root: str = "s3://pneumonia",
    release_volume: str = "",
    s3_endpoint: str = "",
    num_nodes: int = 1,
    gpus: int = 0,
    gpu_tolerations: list = [],  # noqa: B006
    gpu_node_selector: dict = {},  # noqa: B006
    gpu_autoscaling: bool = False,
    training_volume: str = "",
    cpu_image: str = STEP_IMAGE,
    cuda_image: str = CUDA_IMAGE,
    cpu_request: str = "250m",
    cpu_limit: str = "4",
    memory_request: str = "1Gi",
    memory_limit: str = "8Gi",
    training_cpu_request: str = "1",
    training_cpu_limit: str = "16",
    training_memory_request: str = "2Gi",
    training_memory_limit: str = "32Gi",
    baseline: bool = False,
    tensorrt: bool = False,
    backend: str = "auto",
    deploy: bool = True,
    namespace: str = "pneumonia",
    inference_service: str = "pneumonia",
    canary_percent: int = 10,
    notify_url: str = "",
    library_version: str = __version__,
):
    """Check, fetch, prepare, train, evaluate, pass the gate, export, publish, deploy, and say how it ended.

    Args:
        experiment: `local`, `smoke`, `vit_base` or `dinov2_small`.
        overrides: configuration, such as `training.num_train_epochs=5`.
        source: where X-rays come from, such as `phantom` or `folder`.
        data_root: folder of X-rays for `source=folder`, such as one below /data.
        data_volume: PersistentVolumeClaim with X-rays, mounted at /data; named when the file is compiled or submitted
            by pneumoctl, like the other two.
        gate: least test figures in place of the experiment's, such as `{"recall": 0.95}`.
        tracking_uri: MLflow server, `null` for none; empty for what the experiment says.
        release_root: folder or `s3://bucket/prefix` that gets `releases/`.
        release_volume: PersistentVolumeClaim that gets `releases/` instead, for servers that read volumes.
        s3_endpoint: address of the object store; empty for Amazon's.
        num_nodes: nodes to train on; more than one GPU in all makes a TrainJob of it.
        gpus: GPUs of each node; 0 trains on the CPU.
        gpu_tolerations: of pods on GPU nodes, beside that of the taint nvidia.com/gpu.
        gpu_node_selector: labels that GPU nodes must have.
        gpu_autoscaling: whether GPU nodes come when a pod waits for them; the first step does not look for one then.
        training_volume: PersistentVolumeClaim (ReadWriteMany) that a TrainJob's data travels through.
        cpu_image: step image of training and export without a GPU.
        cuda_image: their step image with one, and that of a TrainJob's nodes.
        cpu_request: CPU that each step but training and export asks for.
        cpu_limit: most CPU that it gets.
        memory_request: memory that it asks for.
        memory_limit: most memory that it gets.
        training_cpu_request: CPU that training and export ask for.
        training_cpu_limit: most CPU that they get.
        training_memory_request: memory that they ask for.
        training_memory_limit: most memory that they get.
        baseline: whether a logistic regression is fitted to compare with.
        tensorrt: whether the bundle gets a TensorRT engine, built on a GPU.
        backend: Triton backend that runs the model: `python`, `onnxruntime` or `tensorrt`; `auto` is `tensorrt` with an
            engine and `python` without.
        deploy: whether the release is brought to KServe.
        namespace: of the InferenceService.
        inference_service: its name.
        canary_percent: share of the traffic that a tested canary gets before it is promoted.
        notify_url: webhook that is told how the run ended.
        library_version: every step takes it, so that the cache, which cannot see code inside the step image, does not
            answer for another release.
    """
    version = {"library_version": library_version}
    small = (cpu_request, cpu_limit, memory_request, memory_limit)
    large = (training_cpu_request, training_cpu_limit, training_memory_request, training_memory_limit)
    said = uncached(with_resources(notify(url=notify_url, run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, **version), *SMALL))
    with dsl.ExitHandler(said, name="run"):
        checked = uncached(
            check(
                experiment=experiment,
                source=source,
                data_root=data_root,
                overrides=overrides,
                gate=gate,
                tracking_uri=tracking_uri,
                data_volume=data_volume,
                release_root=release_root,
                release_volume=release_volume,
                s3_endpoint=s3_endpoint,
                num_nodes=num_nodes,
                gpus=gpus,
                gpu_tolerations=gpu_tolerations,
                gpu_node_selector=gpu_node_selector,
                gpu_autoscaling=gpu_autoscaling,
                training_volume=training_volume,
                cpu_image=cpu_image,
                cuda_image=cuda_image,
                tensorrt=tensorrt,
                backend=backend,
                deploy=deploy,
                namespace=namespace,
                inference_service=inference_service,
                cpu_request=cpu_request,
                cpu_limit=cpu_limit,
                memory_request=memory_request,
                memory_limit=memory_limit,
                training_cpu_request=training_cpu_request,
                training_cpu_limit=training_cpu_limit,
                training_memory_request=training_memory_request,
                training_memory_limit=training_memory_limit,
                **version,
            )
        )
        with_resources(with_secrets(checked, ["kaggle", "s3", "mlflow", "settings"]), *small)
        # Kubeflow knows an artifact by a number that every run counts on, so the cache answers a step only where it has
        # answered all that its inputs come from. It begins here, where everything is a parameter.
        key = {"data_digest": checked.outputs["data_digest"], **version}
        fetching = fetch(overrides=checked.outputs["overrides"], **key)
        fetched = with_resources(with_secrets(fetching, ["kaggle", "settings"]), *small)
        settings = {"settings": fetched.outputs["settings"], **version}
        preparing = prepare(**settings, data_digest=key["data_digest"], fetched=fetched.outputs["fetched"])
        prepared = with_resources(with_secrets(preparing, ["settings"]), *small).outputs["prepared"]

        # One task, whatever it runs on: behind a condition, a task that the cache answered counts as never ended.
        training = train(**settings, nodes=checked.outputs["train_nodes"], prepared=prepared)
        at_place(training, *(checked.outputs[f"train_{name}"] for name in PLACE))
        with_resources(with_secrets(with_run(training), ["mlflow", "s3", "settings"]), *large, seconds=TRAINING_S)
        trained = training.outputs["trained"]
        evaluating = evaluate(**settings, baseline=baseline, trained=trained, prepared=prepared)
        with_resources(with_secrets(evaluating, ["mlflow", "s3", "settings"]), *small)
        evaluation = evaluating.outputs["evaluation"]
        # A verdict, a release and a message are facts about now: the past must not answer for them.
        gated = uncached(with_resources(pass_gate(**settings, evaluation=evaluation), *small))
        models = {"trained": trained, "evaluation": evaluation, "prepared": prepared}
        exporting = export(**settings, **models, verdict=gated.outputs["Output"], tensorrt=tensorrt)
        at_place(exporting, *(checked.outputs[f"export_{name}"] for name in PLACE))
        bundle = with_resources(with_secrets(exporting, ["mlflow", "s3"]), *large).outputs["bundle"]

        place = {"release_root": release_root, "release_volume": release_volume, "s3_endpoint": s3_endpoint}
        published = uncached(publish(**settings, **place, backend=backend, bundle=bundle))
        with_resources(with_secrets(published, ["s3", "mlflow"]), *small)
        with dsl.If(deploy == True, name="deploy"):  # noqa: E712  kfp overloads ==
            deployed = deploy_release(
                **settings,
                namespace=namespace,
                inference_service=inference_service,
                canary_percent=canary_percent,
                release=published.outputs["release"],
                bundle=bundle,
                fetched=fetched.outputs["fetched"],
            )
            uncached(with_resources(with_secrets(deployed, ["s3", "mlflow"]), *SMALL))
            uncached(with_resources(confirm(**version, deployed=deployed.outputs["deployed"]), *SMALL))


if __name__ == "__main__":
    compiler.Compiler().compile(train_pipeline, str(Path(__file__).with_suffix(".yaml")))
