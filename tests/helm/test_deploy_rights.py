"""The chart's Role allows every call of the deploy step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import helm_check

from pneumonia.rollout.deploy import deploy
from tests.helm.conftest import nested
from tests.rollout.clusters import NAMESPACE, RULES, make_world

VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
PATH = re.compile(r"(\w+) /(?:api/v1|apis/([^/]+)/[^/]+)/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?$")


def allowed(rules: list[dict[str, Any]], verb: str, group: str, kind: str, name: str) -> bool:
    """As Kubernetes decides it: a rule with names allows what names one of them."""
    return any(
        group in rule["apiGroups"]
        and kind in rule["resources"]
        and verb in rule["verbs"]
        and ("resourceNames" not in rule or name in rule["resourceNames"])
        for rule in rules
    )


def test_a_rollout_and_the_way_back_need_no_right_that_the_role_lacks(tmp_path: Path) -> None:
    values = nested(
        {
            "image.repository": "registry.example.com/pneumonia-triton",
            "model.source": "s3",
            "model.uri": "s3://models/releases/" + "a" * 64,
            "model.managedBy": "deploy",
            "deployStep.enabled": True,
            "deployStep.serviceAccounts": [{"name": "pipeline-runner", "namespace": "kubeflow"}],
        }
    )
    roles = [item for item in helm_check.objects(values) if item["kind"] == "Role"]
    (rules,) = [role["rules"] for role in roles if role["metadata"]["name"].endswith("-deploy")]
    world = make_world(tmp_path)
    cluster = world.cluster()
    for which in (1, 0):
        result = deploy(str(world.releases[which]), world.bundles[which].path, world.images, cluster=cluster,
                        connect=cluster.connect, **RULES)  # fmt: skip
        assert result.outcome == "promoted"
    calls = {PATH.match(line) for line in cluster.log}
    refused = set()
    for call in calls:
        assert call is not None and call[3] == NAMESPACE
        kind, name = call[4], call[5] or ""
        verb = "list" if call[1] == "GET" and not name else VERBS[call[1]]
        if not allowed(rules, verb, call[2] or "", kind, name):
            refused.add((verb, kind, name))
    assert refused == set()
    assert not allowed(rules, "patch", "", "configmaps", "another")
    assert not allowed(rules, "patch", "serving.kserve.io", "inferenceservices", "another")
