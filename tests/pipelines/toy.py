"""A real pipeline of two steps: the first does what its parameter says, the second leaves a mark that it ran."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Output

from pneumonia import __version__


@dsl.component(base_image=f"pneumonia-step:{__version__}", install_kfp_package=False)
def act(code: str, library_version: str, done: Output[Artifact]):
    from pneumonia.pipelines.step import step

    with step("act", library_version):
        exec(code)
        open(done.path, "w").close()


@dsl.component(base_image=f"pneumonia-step:{__version__}", install_kfp_package=False)
def after(mark: str, done: Input[Artifact], marked: Output[Artifact]):
    open(mark, "w").close()


@dsl.pipeline(name="toy")
def toy(code: str, mark: str):
    """Act, then leave the mark; a cluster would try again, a local run must not."""
    acting = act(code=code, library_version=__version__).set_retry(num_retries=3, backoff_duration="300s")
    after(mark=mark, done=acting.outputs["done"])
