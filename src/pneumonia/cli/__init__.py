"""The command line: parse, one call, render. One small module per command group, each with `register(app)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def register(app: typer.Typer) -> None:
    """Add every command group to `app`. The modules import heavy libraries only inside their functions."""
    from pneumonia.cli import data, demo, infer, model, pipeline, release, score, train

    for module in (data, train, infer, score, release, model, pipeline, demo):
        module.register(app)
