"""A small pipeline, really compiled and run by the real kfp.local, to see what happens when a step misbehaves."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled pipeline of toy.py; its parameters are code and mark."""
    pytest.importorskip("kfp", reason="kfp is not installed; pip install 'pneumonia[pipelines]'")
    from kfp import compiler

    spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path_factory.mktemp("toy") / "toy.yaml"
    compiler.Compiler().compile(module.toy, str(path))
    return path
