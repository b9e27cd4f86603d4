"""Fetch: the source's images, and the settings that every later step composes its configuration from."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def fetch(
    experiment: str, source: str, data_root: str, overrides: list[str], library_version: str, fetched: Output[Dataset]
) -> list[str]:
    from pneumonia.pipelines.step import settings_of, step

    with step("fetch", library_version):
        from pathlib import Path

        from pneumonia.config.compose import compose
        from pneumonia.data.sources import fetch

        settings = settings_of(experiment, source, data_root, overrides)
        fetch(compose(settings).data, Path(fetched.path))
    return settings
