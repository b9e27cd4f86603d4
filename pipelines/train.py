"""The training pipeline: wiring only. `python pipelines/train.py` compiles it to train.yaml beside this file."""

import sys
from pathlib import Path

from kfp import compiler, dsl, kubernetes

# Running this file puts pipelines/ on the path; the components lie beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from components.baseline.component import baseline as fit_baseline
from components.build_tensorrt.component import build_tensorrt
from components.cluster import on_gpu, with_retries, with_secrets
from components.confirm.component import confirm
from components.deploy.component import deploy as deploy_release
from components.evaluate.component import evaluate
from components.export_int8.component import export_int8
from components.export_onnx.component import export_onnx
from components.fetch.component import fetch
from components.gate.component import gate
from components.image import CUDA_IMAGE
from components.notify.component import notify
from components.parity.component import parity
from components.prepare.component import prepare
from components.publish.component import publish
from components.train.component import train
from components.train_distributed.component import train_distributed
from pneumonia import __version__

WORKSPACE = "/workspace"
RELEASES = "/release-volume"


@dsl.pipeline(name="pneumonia-train", description="X-rays to a served model, or to the reason why not.")
def train_pipeline(
    experiment: str = "local",
    overrides: list[str] = [],  # noqa: B006  compiled to a constant, never shared
    source: str = "phantom",
    data_root: str = "",
    recall_target: float = 0.95,
    gate_accuracy: float = 0.90,
    gate_precision: float = 0.88,
    gate_recall: float = 0.92,
    gate_f1: float = 0.90,
    gate_recall_low: float = 0.90,
    tracking_uri: str = "local",
    release_root: str = "s3://pneumonia",
    release_volume: str = "",
    s3_endpoint: str = "",
    num_nodes: int = 1,
    gpus: int = 0,
    gpu_tolerations: list = [],  # noqa: B006
    gpu_node_selector: dict = {},  # noqa: B006
    training_image: str = CUDA_IMAGE,
    training_volume: str = "pneumonia-training",
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
    """Fetch, prepare, train, evaluate, pass the gate, export, publish, deploy, and say how it ended.

    Args:
        experiment: `local`, `smoke`, `vit_base` or `dinov2_small`.
        overrides: configuration, such as `training.num_train_epochs=5`.
        source: where X-rays come from, such as `phantom` or `folder`.
        data_root: folder of X-rays for `source=folder`.
        recall_target: recall that the threshold is chosen for, on validation.
        gate_accuracy: least test accuracy.
        gate_precision: least test precision.
        gate_recall: least test recall.
        gate_f1: least test F1.
        gate_recall_low: least lower end of the 95 % interval of test recall.
        tracking_uri: MLflow server; `local` for a file, `null` for none.
        release_root: folder or `s3://bucket/prefix` that gets `releases/`.
        release_volume: PersistentVolumeClaim that gets `releases/` instead, for servers that read volumes.
        s3_endpoint: address of the object store; empty for Amazon's.
        num_nodes: nodes to train on; more than one GPU in all makes a TrainJob of it.
        gpus: GPUs of each node; 0 trains on the CPU.
        gpu_tolerations: of pods on GPU nodes, beside that of the taint nvidia.com/gpu.
        gpu_node_selector: labels that GPU nodes must have.
        training_image: image of a TrainJob's nodes.
        training_volume: PersistentVolumeClaim (ReadWriteMany) that a TrainJob's data travels through.
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
    # A verdict, a release and a message are facts about now: what is uncached below must not be answered by the past.
    said = notify(
        url=notify_url, run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, library_version=library_version
    ).set_caching_options(enable_caching=False)
    with dsl.ExitHandler(said, name="run"):
        # What a folder holds is invisible to the cache, until prepare has its digest. New images must never meet an old
        # answer.
        fetched = fetch(
            experiment=experiment,
            source=source,
            data_root=data_root,
            overrides=overrides,
            recall_target=recall_target,
            gate_accuracy=gate_accuracy,
            gate_precision=gate_precision,
            gate_recall=gate_recall,
            gate_f1=gate_f1,
            gate_recall_low=gate_recall_low,
            tracking_uri=tracking_uri,
            num_nodes=num_nodes,
            gpus=gpus,
            tensorrt=tensorrt,
            deploy=deploy,
            release_root=release_root,
            release_volume=release_volume,
            backend=backend,
            library_version=library_version,
        ).set_caching_options(enable_caching=False)
        with_retries(with_secrets(fetched, ["kaggle"]), 3)
        settings = {"settings": fetched.outputs["Output"], "library_version": library_version}
        preparing = prepare(**settings, fetched=fetched.outputs["fetched"]).set_caching_options(enable_caching=False)
        prepared = {"prepared": preparing.outputs["prepared"], "data_digest": preparing.outputs["Output"]}
        data = {**settings, **prepared}

        if_gpu = {"tolerations": gpu_tolerations, "node_selector": gpu_node_selector}
        shape = {"num_nodes": num_nodes, "gpus": gpus, "image": training_image, "volume_claim": training_volume}
        trainings = []
        with dsl.If(gpus == 0, name="train-on-cpu"):
            trainings.append(train(**data))
        with dsl.Elif(num_nodes > 1, name="train-on-nodes"):
            trainings.append(train_distributed(**data, **shape, **if_gpu))
        with dsl.Elif(gpus > 1, name="train-on-gpus"):
            trainings.append(train_distributed(**data, **shape, **if_gpu))
        with dsl.Else(name="train-on-gpu"):
            trainings.append(on_gpu(train(**data), **if_gpu))
        for task in trainings:
            with_secrets(task, ["mlflow", "s3"])
        for task in trainings[1:3]:
            kubernetes.mount_pvc(task, training_volume, WORKSPACE)
        trained = dsl.OneOf(*(task.outputs["trained"] for task in trainings))

        with dsl.If(baseline == True, name="baseline"):  # noqa: E712  kfp overloads ==
            fit_baseline(**data)
        evaluated = with_secrets(evaluate(**data, trained=trained), ["mlflow", "s3"])
        evaluation = evaluated.outputs["evaluation"]
        gated = gate(**settings, evaluation=evaluation).set_caching_options(enable_caching=False)
        exported = with_secrets(
            export_onnx(**data, verdict=gated.outputs["verdict"], trained=trained, evaluation=evaluation),
            ["mlflow", "s3"],
        )
        quantized = export_int8(**data, bundle=exported.outputs["bundle"])

        checks = {**prepared, "library_version": library_version}
        with dsl.If(tensorrt == False, name="check"):  # noqa: E712
            checked = parity(**checks, bundle=quantized.outputs["quantized"])
        with dsl.Else(name="build-and-check-on-gpu"):
            built = on_gpu(build_tensorrt(**data, bundle=quantized.outputs["quantized"]), **if_gpu)
            checked_on_gpu = on_gpu(parity(**checks, bundle=built.outputs["built"]), **if_gpu)
        bundle = dsl.OneOf(checked.outputs["checked"], checked_on_gpu.outputs["checked"])

        served = {"s3_endpoint": s3_endpoint, "backend": backend, "bundle": bundle}
        with dsl.If(release_volume == "", name="publish"):
            published = publish(**settings, **served, release_root=release_root, release_volume="")
        with dsl.Else(name="publish-to-volume"):
            on_volume = publish(**settings, **served, release_root=RELEASES, release_volume=release_volume)
            kubernetes.mount_pvc(on_volume, release_volume, RELEASES)
        for task in (published, on_volume):
            with_retries(with_secrets(task, ["s3", "mlflow"]), 3).set_caching_options(enable_caching=False)
        release = dsl.OneOf(published.outputs["release"], on_volume.outputs["release"])
        with dsl.If(deploy == True, name="deploy"):  # noqa: E712
            deployed = deploy_release(
                **settings,
                namespace=namespace,
                inference_service=inference_service,
                canary_percent=canary_percent,
                release=release,
                bundle=bundle,
                fetched=fetched.outputs["fetched"],
            )
            with_retries(with_secrets(deployed, ["s3", "mlflow"]), 2).set_caching_options(enable_caching=False)
            confirm(library_version=library_version, deployed=deployed.outputs["deployed"]).set_caching_options(
                enable_caching=False
            )


if __name__ == "__main__":
    compiler.Compiler().compile(train_pipeline, str(Path(__file__).with_suffix(".yaml")))
