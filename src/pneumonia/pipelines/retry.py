"""Another try for what a network lost, inside the step: a controller's own retries differ from cluster to cluster.

Kubeflow Pipelines 2.17 sets `retryPolicy: OnError` for every step (workflow-controller-configmap), by which Argo tries
a pod that was killed once more, and none that ended with an exit code; other controllers try both.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pneumonia.errors import ServerUnavailable, SourceUnavailable
from pneumonia.kubernetes import in_pod

PAUSES_S = (10.0, 30.0, 90.0)
"""Before the second try and each one after it."""
_Result = TypeVar("_Result")


def patiently(work: Callable[[], _Result], pauses_s: Sequence[float] | None = None) -> _Result:
    """What `work` returns, tried again where a server or a source was lost for a while.

    Everything else, such as a refusal, missing credentials or a wrong setting, is raised at once. pauses_s: by default
    PAUSES_S in a pod and no second try elsewhere, where a person looks on.
    """
    for pause_s in (PAUSES_S if in_pod() else ()) if pauses_s is None else pauses_s:
        try:
            return work()
        except (ServerUnavailable, SourceUnavailable) as error:
            if not error.transient:
                raise
            print(f"retry: {error}; trying again in {pause_s:.0f} s", file=sys.stderr, flush=True)
        time.sleep(pause_s)
    return work()
