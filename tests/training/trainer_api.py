"""A Kubernetes API server of the few paths that a TrainJob takes, over real HTTP; it plays the controller too."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainjobs"
PODS = "/api/v1/namespaces/ml/pods"


class FakeTrainer:
    """Takes a TrainJob, and at each look at it goes one step on: the log grows, then it ends as `outcome` says.

    outcome: Complete, Failed, or Running for a job that never ends. log: what the first node writes, line by line.
    on_complete: called with the job when it completes. refuse: HTTP status for creating one. away: looks that get 503.
    no_log: HTTP status for reading the log. exit_code: of the first node, which is restarted in place, once its log
    ends; what it wrote is then the log of its predecessor.
    """

    def __init__(
        self, outcome: str, log: list[str], on_complete: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self.outcome, self.full_log, self.on_complete = outcome, log, on_complete
        self.jobs: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.looks = 0
        self.refuse = 0
        self.away = 0
        self.no_log = 0
        self.exit_code = 0
        self.message = "trainjobs.trainer.kubeflow.org is forbidden"

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        """Status and JSON, or text, of one request."""
        if method == "POST" and path == JOBS:
            return self._create(body)
        if found := re.fullmatch(f"{JOBS}/([^/]+)", path):
            return self._delete(found[1]) if method == "DELETE" else self._look(found[1])
        if path == PODS:
            (selector,) = query["labelSelector"]
            name = re.fullmatch(
                r"jobset.sigs.k8s.io/jobset-name=([^,]+)(,batch.kubernetes.io/job-completion-index=0)?", selector
            )
            assert name, selector
            return 200, {
                "kind": "PodList",
                "items": [self._pod(f"{name[1]}-node-0-0-x")] if name[1] in self.jobs else [],
            }
        if path.startswith(f"{PODS}/") and path.endswith("/log"):
            assert query["container"] == ["node"]
            if self.no_log:
                return self.no_log, {"message": "container is gone"}
            if self._restarted() != (query.get("previous", [""])[0].lower() == "true"):
                return (200, "") if self._restarted() else (400, {"message": "previous terminated container not found"})
            return 200, "\n".join(self.full_log[: self.looks])
        return 404, {"message": f"no path {method} {path}"}

    def _restarted(self) -> bool:
        return bool(self.exit_code) and self.looks > len(self.full_log)

    def _pod(self, name: str) -> dict[str, Any]:
        node: dict[str, Any] = {"name": "node", "image": "i", "imageID": "", "ready": True, "restartCount": 0}
        if self._restarted():
            node |= {"restartCount": 1, "lastState": {"terminated": {"exitCode": self.exit_code}}}
        made = {"name": name, "creationTimestamp": "2026-11-01T10:00:00Z"}
        return {"metadata": made, "status": {"phase": "Running", "containerStatuses": [node]}}

    def _create(self, job: dict[str, Any]) -> tuple[int, Any]:
        if self.refuse:
            return self.refuse, {"kind": "Status", "message": self.message}
        self.created.append(job)
        self.jobs[job["metadata"]["name"]] = job
        return 201, job

    def _delete(self, name: str) -> tuple[int, Any]:
        self.deleted.append(name)
        return (200, {"status": "Success"}) if self.jobs.pop(name, None) else (404, {"message": "not found"})

    def _look(self, name: str) -> tuple[int, Any]:
        self.looks += 1
        if self.looks <= self.away:
            return 503, {"message": "try later"}
        if name not in self.jobs:
            return 404, {"message": f'trainjobs "{name}" not found'}
        job, over = self.jobs[name], self.looks > len(self.full_log)
        if over and self.outcome != "Running":
            if self.outcome == "Complete" and self.on_complete:
                self.on_complete(job)
            condition = {"type": self.outcome, "status": "True", "reason": "JobsFailed", "message": "node failed"}
            return 200, {**job, "status": {"conditions": [condition]}}
        return 200, job


def trains(workspace: Path, bundle: Path) -> Callable[[dict[str, Any]], None]:
    """What a job's nodes do: read the prepared data and leave a bundle, both on the shared volume."""

    def act(job: dict[str, Any]) -> None:
        folder = workspace / job["metadata"]["name"]
        assert (folder / "prepared").is_dir()
        shutil.copytree(bundle, folder / "out" / "any" / "bundle", dirs_exist_ok=True)

    return act
