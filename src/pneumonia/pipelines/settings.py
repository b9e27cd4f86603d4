"""The pipeline's parameters as one file of settings, which every later step reads; no default stands here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumonia.config.compose import compose, to_yaml
from pneumonia.errors import ConfigError
from pneumonia.files import write_text

PARAMETERS = {"experiment": "experiment", "data": "source", "data.root": "data_root", "tracking.uri": "tracking_uri"}
"""Configuration keys that have a pipeline parameter of their own, with its name."""
_ALWAYS = ("experiment", "data", "data.root")


def overrides_of(
    experiment: str,
    source: str,
    data_root: str,
    overrides: Sequence[str],
    gate: Mapping[str, Any] | None = None,
    tracking_uri: str = "",
) -> list[str]:
    """The pipeline's parameters as overrides of the configuration; what is empty is not said at all.

    gate: least figures by their name below `gate.`, such as {"recall": 0.95}. Raises ConfigError where `overrides` sets
    what a parameter sets.
    """
    given: dict[str, Any] = {"experiment": experiment, "data": source, "data.root": data_root}
    given |= {"tracking.uri": tracking_uri, **{f"gate.{name}": value for name, value in (gate or {}).items()}}
    said = [f"{key}={'null' if value is None else value}" for key, value in given.items() if value != ""]
    for override in overrides:
        key = override.partition("=")[0]
        if key in _ALWAYS or given.get(key, "") != "":
            raise ConfigError(f"{override}: set the pipeline's parameter {PARAMETERS.get(key, 'gate')} instead")
    return [*said, *overrides]


def write_settings(overrides: Sequence[str], out: Path) -> None:
    """Write what `compose` makes of the overrides to `out`, for `pneumonia.config.compose.load`."""
    write_text(out, to_yaml(compose(overrides)))
