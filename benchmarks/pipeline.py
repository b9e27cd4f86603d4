"""What an engine adds to a step: a pipeline whose steps do nothing, in processes and in containers; image sizes.

    python benchmarks/pipeline.py

A chain of 6 steps, each of which imports the library and leaves an empty file, 3 runs an engine, in turns; seconds a
step, medians. The peer is the same import in a Python that is started directly. Containers are left out where there is
no Docker daemon or no step image (`make images`). Then the training pipeline on few phantoms, cold and cached. Writes
its table into benchmarks/RESULTS.md.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _results import machine, write_section
from kfp import compiler, dsl
from kfp.dsl import Artifact, Input, Output

from pneumonia import __version__, contract
from pneumonia.errors import MissingPrerequisite
from pneumonia.pipelines.containers import require_docker, step_image
from pneumonia.pipelines.run import run_graph

ROUNDS, STEPS = 3, 6
PEER = "python, started directly"


@dsl.component(base_image=f"pneumonia-step:{__version__}", install_kfp_package=False)
def begin(done: Output[Artifact]):
    """The first link."""
    from pneumonia.pipelines.step import step

    with step("begin", __import__("pneumonia").__version__):
        open(done.path, "w").close()


@dsl.component(base_image=f"pneumonia-step:{__version__}", install_kfp_package=False)
def follow(before: Input[Artifact], done: Output[Artifact]):
    """A link that waits for another."""
    from pneumonia.pipelines.step import step

    with step("follow", __import__("pneumonia").__version__):
        open(done.path, "w").close()


@dsl.pipeline(name="chain")
def chain():
    """STEPS steps, one after the other."""
    task = begin()
    for _ in range(STEPS - 1):
        task = follow(before=task.outputs["done"])


def main() -> None:
    """Run the chain under each engine and print a row each."""
    engines = ["subprocess"]
    note = ""
    try:
        require_docker(step_image())
        engines.append("docker")
    except MissingPrerequisite as error:
        note = f"\n\nNo containers: {error}."
    seconds: dict[str, list[float]] = {PEER: [], **{engine: [] for engine in engines}}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[contract.TRACKING_DIR_ENV] = scratch
        compiled = Path(scratch) / "chain.yaml"
        compiler.Compiler().compile(chain, str(compiled))
        for number in range(ROUNDS):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", "from pneumonia.pipelines.step import step"], check=True)
            seconds[PEER].append(time.perf_counter() - began)
            for engine in engines:
                folder = Path(scratch) / f"{engine}-{number}"
                folder.mkdir()
                progress, code = run_graph(compiled, {}, folder, engine)
                if code != 0:
                    sys.exit(f"error: the chain failed under {engine}; see {folder}")
                seconds[engine] += progress.seconds.values()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [f"| {name} | {median:.2f} | {median - medians[PEER]:.2f} |" for name, median in medians.items()]
    text = "\n".join([machine("kfp"), "", "| | seconds a step | more than the peer |", "|---|---|---|", *rows])
    text += note + cold_and_cached() + sizes()
    write_section("What an engine adds to a step", text)
    print(text)


def cold_and_cached() -> str:
    """The whole training pipeline on few phantoms, and again with the cache of that run."""
    gate = [f"gate.{name}=0" for name in ("accuracy", "precision", "recall", "f1", "recall_low")]
    settings = ["experiment=smoke", "data.num_images=160", "evaluation.recall_target=0.5", "tracking.uri=null", *gate]
    command = [str(Path(sys.executable).with_name("pneumoctl")), "pipeline", "run", "--cache", *settings]
    seconds = []
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(2):
            began = time.perf_counter()
            subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
    return (
        f"\n\nThe whole pipeline on 160 phantoms (experiment=smoke): {seconds[0]:.1f} s cold, {seconds[1]:.1f} s with "
        "--cache, which leaves fetch, prepare, gate, publish and the message."
    )


def sizes() -> str:
    """The images of this version that are on this machine, with their sizes."""
    command = ["docker", "images", "--filter", f"reference=pneumonia-*:{__version__}", "--format",
               "| {{.Repository}}:{{.Tag}} | {{.Size}} |"]  # fmt: skip
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"\n\n| image | size |\n|---|---|\n{found}" if found else ""


if __name__ == "__main__":
    main()
