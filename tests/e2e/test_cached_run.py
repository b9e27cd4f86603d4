"""A second run on the same data takes what it may from the first, and nothing where anything differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pneumonia.bundle import open_bundle
from tests.pipelines.test_local_run import OPEN_GATE, TINY, pipeline_run

NEVER = {"check", "gate", "publish", "notify"}


@pytest.mark.slow
def test_equal_inputs_take_the_earlier_outputs_and_others_do_not(tmp_path: Path) -> None:
    cold, cached, other = (run(tmp_path, *more) for more in ((), (), ("training.seed=7",)))
    assert not [name for name, seconds in cold["seconds"].items() if seconds == 0]
    taken = {name for name, seconds in cached["seconds"].items() if seconds == 0}
    assert taken == set(cold["seconds"]) - NEVER
    assert cached["model_id"] == cold["model_id"] and cached["metrics"] == cold["metrics"]
    assert cached["release"] == cold["release"]
    assert Path(cached["report"]).is_file()
    assert not [name for name, seconds in other["seconds"].items() if seconds == 0]
    assert other["model_id"] != cold["model_id"]
    print("cold", sum(cold["seconds"].values()), "cached", sum(cached["seconds"].values()))


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    """One run with the cache."""
    done = pipeline_run(folder, *TINY, *OPEN_GATE, *overrides, "--cache")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert open_bundle(folder / "models").model_id == result["model_id"]
    return result
