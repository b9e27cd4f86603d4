"""The process that runs a compiled pipeline through kfp.local: `python -m pneumonia.pipelines.engine request.json`.

It is a process of its own because kfp.local writes its log and that of every step to stdout, where only results belong.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CACHED_FILE = "cached.txt"
"""In a run's folder: outputs of earlier runs that its steps were answered with, one path a line."""


def shield_interpreter(folder: Path) -> None:
    """Make `python3` mean this interpreter for the steps.

    kfp.local replaces the text `python3` everywhere in a step's command by sys.executable, unquoted: that breaks on a
    space in the interpreter's path and rewrites user paths that contain `python3`. With sys.executable = "python3"
    the replacement changes nothing, and PATH leads to this interpreter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wrapper = folder / "python3"
    # A symbolic link would lose the virtual environment, which Python finds beside the name it was called by.
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', "utf-8")
    wrapper.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    sys.executable = "python3"


def forget_retries(pipeline_spec: Any) -> None:
    """Retries are for networks and nodes of a cluster; here a step that failed would fail again, minutes later."""
    for component in (pipeline_spec.root, *pipeline_spec.components.values()):
        for task in component.dag.tasks.values():
            task.ClearField("retry_policy")


def subprocess_runner(request: Mapping[str, Any]) -> Any:
    """Steps as processes of this interpreter."""
    shield_interpreter(Path(request["scratch"]) / "bin")
    from kfp import local

    return local.SubprocessRunner(use_venv=False)


def docker_runner(request: Mapping[str, Any]) -> Any:
    """Steps as containers of the step image."""
    from kfp import local
    from kfp.local import docker_task_handler

    from pneumonia.pipelines.containers import follow, run_options

    # By default the signal ends this process at once, and the container of the step goes on.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    docker_task_handler.run_docker_container = follow
    return local.DockerRunner(**run_options(request))


def remember_outputs(root: Path) -> None:
    """Let kfp.local's cache serve later runs, and note in <root>/CACHED_FILE what it gave to this one.

    Its key holds the paths of the inputs, as Kubeflow's holds their numbers: a step is found again where all that it
    comes from was.
    """
    from kfp import dsl
    from kfp.local.cache import LocalCache

    key_of, get, put = LocalCache.compute_key, LocalCache.get, LocalCache.put
    steps = {}

    def compute_key(self: Any, component_name: str, *inputs: Any, **named: Any) -> Any:
        key = key_of(self, component_name, *inputs, **named)
        steps[key] = component_name.removeprefix("comp-")
        return key

    def get_and_say(self: Any, key: str) -> Any:
        outputs = get(self, key)
        if outputs is not None:
            with (root / CACHED_FILE).open("a", encoding="utf-8") as stream:
                stream.writelines(f"{output.uri}\n" for output in outputs.values() if isinstance(output, dsl.Artifact))
            # kfp's own line about it gets lost.
            print(f"Task '{steps[key]}' cache hit", flush=True)
        return outputs

    def put_with_files(self: Any, key: str, outputs: Any) -> None:
        # Figures and curves are metadata alone; without a file kfp takes what it stored for lost.
        for output in outputs.values():
            if isinstance(output, dsl.Artifact) and not Path(output.path).exists():
                Path(output.path).touch()
        put(self, key, outputs)

    LocalCache.compute_key, LocalCache.get, LocalCache.put = compute_key, get_and_say, put_with_files


RUNNERS = {"subprocess": subprocess_runner, "docker": docker_runner}


def main(request_file: str) -> int:
    """Run what the request says: {engine, pipeline, arguments, root, scratch, cache}. 0 where every step succeeded.

    cache: folder of kfp.local's cache, or null. 1 where a step failed.
    """
    request = json.loads(Path(request_file).read_text("utf-8"))
    runner = RUNNERS[request["engine"]](request)
    from kfp import local
    from kfp.components import load_component_from_file

    workspace = Path(request["scratch"]) / "workspace"
    workspace.mkdir(exist_ok=True)
    cache = request["cache"]
    if cache:
        remember_outputs(Path(request["root"]))
    local.init(
        runner,
        pipeline_root=request["root"],
        workspace_root=str(workspace),
        raise_on_error=True,
        enable_caching=bool(cache),
        cache_root=cache,
    )
    try:
        pipeline = load_component_from_file(request["pipeline"])
        # Not pipeline.pipeline_spec, which is a copy.
        forget_retries(pipeline.component_spec.implementation.graph)
        pipeline(**request["arguments"])
    except Exception:
        # Into the log; the step has left its own reason for the user.
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
