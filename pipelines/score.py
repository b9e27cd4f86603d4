"""The pipeline of bulk scoring: wiring only. `python pipelines/score.py` compiles it to score.yaml beside this file."""

import sys
from pathlib import Path

from kfp import compiler, dsl, kubernetes

# Running this file puts pipelines/ on the path; the components lie beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from components.cluster import RUN_S, SMALL, with_resources
from components.list_shards.component import list_shards
from components.merge_scores.component import merge_scores
from components.notify.component import notify
from components.score_shard.component import score_shard
from pneumonia import __version__

VOLUME = "/images"
SHARD = ("1", "4", "1Gi", "4Gi")
"""CPU and memory of a shard: request and limit of each."""


@dsl.pipeline(
    name="pneumonia-score",
    description="A table of answers for many X-rays, scored in shards side by side.",
    pipeline_config=dsl.PipelineConfig(active_deadline_seconds=RUN_S),
)
def score_pipeline(
    images: str = VOLUME,
    images_volume: str = "pneumonia-images",
    bundle: str = f"{VOLUME}/models",
    server: str = "",
    shards: int = 8,
    notify_url: str = "",
    library_version: str = __version__,
):
    """List the images, score shards of them side by side, merge the tables, and say how it ended.

    Args:
        images: folder or pattern of images; on a cluster below /images.
        images_volume: PersistentVolumeClaim that is mounted there.
        bundle: folder of the model's bundle; on a cluster below /images too.
        server: host and port of a Triton server to ask instead of scoring in the steps.
        shards: how many steps share the images.
        notify_url: webhook that is told how the run ended.
        library_version: every step takes it, see the training pipeline.
    """
    version = {"library_version": library_version}
    said = notify(url=notify_url, run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, **version).set_caching_options(
        enable_caching=False
    )
    with_resources(said, *SMALL)
    with dsl.ExitHandler(said, name="run"):
        listed = list_shards(images=images, shards=shards, **version).set_caching_options(enable_caching=False)
        kubernetes.mount_pvc(with_resources(listed, *SMALL), images_volume, VOLUME)
        with dsl.ParallelFor(listed.outputs["Output"], name="shards") as shard:
            # The cache cannot see whether images or model at these paths have changed.
            scored = score_shard(
                shard=shard, bundle=bundle, server=server, lists=listed.outputs["lists"], **version
            ).set_caching_options(enable_caching=False)
            kubernetes.mount_pvc(with_resources(scored, *SHARD), images_volume, VOLUME)
        merged = merge_scores(shards=dsl.Collected(scored.outputs["scores"]), **version)
        with_resources(merged, *SMALL).set_caching_options(enable_caching=False)


if __name__ == "__main__":
    compiler.Compiler().compile(score_pipeline, str(Path(__file__).with_suffix(".yaml")))
