"""The training pipeline: wiring only. `python pipelines/train.py` compiles it to train.yaml beside this file."""

import sys
from pathlib import Path

from kfp import compiler, dsl

# Running this file puts pipelines/ on the path; the components lie beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from components.evaluate.component import evaluate
from components.export_onnx.component import export_onnx
from components.fetch.component import fetch
from components.gate.component import gate
from components.prepare.component import prepare
from components.publish.component import publish
from components.train.component import train
from pneumonia import __version__


@dsl.pipeline(name="pneumonia-train", description="X-rays to a published release, or to the reason why not.")
def train_pipeline(
    release_root: str,
    experiment: str = "local",
    source: str = "phantom",
    data_root: str = "",
    overrides: list[str] = [],  # noqa: B006  compiled to a constant, never shared
    library_version: str = __version__,
):
    """Fetch, prepare, train, evaluate, pass the gate, export, publish.

    library_version: every step takes it, so that the cache, which cannot see code inside the step image, does not
    answer for another release.
    """
    fetched = fetch(
        experiment=experiment,
        source=source,
        data_root=data_root,
        overrides=overrides,
        library_version=library_version,
        # What a folder holds is invisible to the cache. New images must never meet an old answer.
    ).set_caching_options(enable_caching=False)
    common = {"settings": fetched.outputs["Output"], "library_version": library_version}
    prepared = prepare(**common, fetched=fetched.outputs["fetched"]).outputs["prepared"]
    trained = train(**common, prepared=prepared).outputs["trained"]
    evaluation = evaluate(**common, trained=trained, prepared=prepared).outputs["evaluation"]
    # A verdict and a release are facts about now; an old one must not stand in for them.
    gated = gate(**common, evaluation=evaluation).set_caching_options(enable_caching=False)
    exported = export_onnx(
        **common,
        verdict=gated.outputs["verdict"],
        trained=trained,
        evaluation=evaluation,
        prepared=prepared,
    )
    publish(
        release_root=release_root, library_version=library_version, bundle=exported.outputs["bundle"]
    ).set_caching_options(enable_caching=False)


if __name__ == "__main__":
    compiler.Compiler().compile(train_pipeline, str(Path(__file__).with_suffix(".yaml")))
