"""Values that contradict each other or are mistyped are refused with a sentence that names them."""

from __future__ import annotations

from typing import Any

import helm_check
import pytest

from tests.helm.conftest import nested

URI = f"s3://models/releases/{'a' * 64}"
OTHER = f"s3://models/releases/{'b' * 64}"
IMAGE = {"image.repository": "registry.example.com/pneumonia-triton"}
S3 = {"model.source": "s3", "model.uri": URI}
GITOPS = {**S3, "model.managedBy": "values"}

CONTRADICTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"image.repository": ""}, ["image.repository is required", "make images push"]),
    ({"model.uri": URI}, ["model.source=image", f"model.uri={URI}"]),
    ({"model.source": "s3"}, ["model.source=s3 needs model.uri"]),
    ({"model.source": "pvc", "model.uri": URI}, ["model.source=pvc", f"model.uri={URI}", "pvc://"]),
    ({"model.source": "s3", "model.uri": "s3://models/releases"}, ["no single release", "/releases/<64 hex digits"]),
    ({"model.source": "oci", "model.uri": "oci+native://r/release:1"}, ["names no digest"]),
    (
        {"model.managedBy": "values", "model.canary.name": "new", "model.canary.uri": URI},
        ["model.source=image and model.canary.name=new"],
    ),
    (
        {**S3, "model.canary.name": "new", "model.canary.uri": OTHER},
        ["model.canary.name=new with model.managedBy=deploy"],
    ),
    ({**GITOPS, "model.canary.name": "new"}, ["model.canary.name=new needs model.canary.uri"]),
    ({**GITOPS, "model.canary.name": "new", "model.canary.uri": URI}, ["the same release"]),
    (
        {**GITOPS, "model.predictorName": "new", "model.canary.name": "new", "model.canary.uri": OTHER},
        ["model.canary.name and model.predictorName are both new"],
    ),
    (
        {**GITOPS, "model.canary.name": "new", "model.canary.uri": OTHER, "model.canary.trafficPercent": 10},
        ["model.canary.trafficPercent=10", "gateway.exposed=false"],
    ),
    ({**GITOPS, "model.canary.trafficPercent": 10}, ["model.canary.trafficPercent=10 without model.canary.name"]),
    ({**S3, "model.predictorName": "m"}, ["model.predictorName=m", "model.managedBy=deploy"]),
    ({"model.synthetic": True}, ["model.synthetic=true", "model.allowSynthetic=false"]),
    ({**S3, "s3.createSecret": True}, ["s3.createSecret=true needs s3.accessKeyId and s3.secretAccessKey"]),
    (
        {**S3, "s3.createSecret": True, "s3.existingSecret": "x", "s3.accessKeyId": "a", "s3.secretAccessKey": "b"},
        ["s3.createSecret=true and s3.existingSecret=x"],
    ),
    ({**S3, "s3.accessKeyId": "a"}, ["s3.accessKeyId", "s3.createSecret=false"]),
    ({**S3, "s3.endpoint": "s3:8333"}, ['s3.endpoint="s3:8333"', "s3.createSecret=false"]),
    ({"s3.existingSecret": "x"}, ['s3.existingSecret="x"', "model.source=image"]),
    ({**S3, "s3.existingSecret": "x", "serviceAccount.create": False}, ["serviceAccount.create=false"]),
    ({"serviceAccount.create": False, "serviceAccount.annotations": {"a": "b"}}, ["serviceAccount.annotations"]),
    ({"runtime.gpu.tensorrt": True}, ["runtime.gpu.tensorrt=true", "runtime.variant=cpu"]),
    ({"runtime.variant": "gpu", "runtime.gpu.tensorrt": True}, ["runtime.gpu.tensorrt=true needs runtime.gpu.product"]),
    ({"runtime.gpu.product": "NVIDIA-L4"}, ["runtime.gpu.product=NVIDIA-L4", "runtime.variant=cpu"]),
    ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, ["resources.limits.nvidia.com/gpu", "runtime.variant"]),
    ({"scaling.minReplicas": 3, "scaling.maxReplicas": 2}, ["minReplicas=3", "maxReplicas=2"]),
    ({"scaling.maxReplicas": 2}, ["scaling.type=none", "scaling.maxReplicas=2"]),
    ({"scaling.type": "hpa"}, ["scaling.type=hpa", "both 1"]),
    (
        {"scaling.type": "hpa", "scaling.maxReplicas": 2, "resources": {"requests": {"cpu": None}}},
        ["scaling.hpa.metric=cpu", "resources.requests.cpu"],
    ),
    ({"scaling.type": "keda", "scaling.maxReplicas": 2}, ["scaling.type=keda needs scaling.keda.prometheusUrl"]),
    (
        {
            "scaling.type": "keda",
            "scaling.maxReplicas": 2,
            "scaling.keda.prometheusUrl": "http://p",
            "metrics.operator": "never",
        },
        ["scaling.type=keda", "metrics.operator=never"],
    ),
    ({"scaling.keda.prometheusUrl": "http://p"}, ["scaling.keda.prometheusUrl=http://p with scaling.type=none"]),
    (
        {"scaling.minReplicas": 2, "scaling.maxReplicas": 2, "podDisruptionBudget.maxUnavailable": 2},
        ["podDisruptionBudget.maxUnavailable=2", "scaling.minReplicas=2"],
    ),
    ({**S3, "deployStep.enabled": True}, ["deployStep.enabled=true needs deployStep.serviceAccounts"]),
    (
        {**GITOPS, "deployStep.enabled": True, "deployStep.serviceAccounts": [{"name": "a", "namespace": "b"}]},
        ["deployStep.enabled=true with model.managedBy=values"],
    ),
    (
        {"deployStep.enabled": True, "deployStep.serviceAccounts": [{"name": "a", "namespace": "b"}]},
        ["deployStep.enabled=true with model.source=image"],
    ),
    ({"runtime.args": ["--http-port=1"]}, ["runtime.args holds --http-port=1"]),
    ({"runtime.env": [{"name": "PNEUMONIA_ALLOW_SYNTHETIC", "value": "1"}]}, ["runtime.env holds PNEUMONIA_ALLOW_SYN"]),
    ({**S3, "networkPolicy.storageCidrs": []}, ["model.source=s3", "networkPolicy.storageCidrs"]),
]

MISTYPED: list[tuple[dict[str, Any], list[str]]] = [
    ({"modle.source": "s3"}, ["modle"]),
    ({"model.sorce": "s3"}, ["/model", "sorce"]),
    ({"model.source": "gcs"}, ["/model/source", "'image', 's3', 'pvc', 'oci'"]),
    ({"scaling.minReplicas": "2"}, ["/scaling/minReplicas", "want integer"]),
    ({"scaling.minReplicas": 0}, ["/scaling/minReplicas", "minimum"]),
    ({"scaling.keda.pendingPerPods": 3}, ["/scaling/keda", "pendingPerPods"]),
    ({"image.tag": "latest"}, ["/image/tag"]),
    ({"image.digest": "sha256:1"}, ["/image/digest"]),
    ({"runtime.user": 0}, ["/runtime/user", "minimum"]),
    ({"runtime.args": ["log-verbose"]}, ["/runtime/args/0"]),
    ({"runtime.env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]}, ["/runtime/env/0/name"]),
    ({"model.canary.trafficPercent": 101}, ["/model/canary/trafficPercent", "maximum"]),
    ({"metrics.alerts.errorShare": 2}, ["/metrics/alerts/errorShare", "maximum"]),
    ({"deployStep.serviceAccounts": [{"name": "a"}]}, ["/deployStep/serviceAccounts/0", "namespace"]),
    ({"networkPolicy.storageCidrs": ["everywhere"]}, ["/networkPolicy/storageCidrs/0"]),
    ({"nameOverride": "Chest"}, ["/nameOverride"]),
]


def refusal(settings: dict[str, Any], name: str = "pneumonia") -> str:
    import helm_python

    with pytest.raises(helm_python.HelmError) as caught:
        helm_check.render(nested({**IMAGE, **settings}), name)
    return str(caught.value)


@pytest.mark.parametrize(("settings", "named"), [*CONTRADICTIONS, *MISTYPED])
def test_refused_with_the_values_named(settings: dict[str, Any], named: list[str]) -> None:
    message = refusal(settings)
    assert [part for part in named if part not in message] == [], message


def test_several_contradictions_are_told_at_once() -> None:
    message = refusal({"model.uri": URI, "scaling.maxReplicas": 2, "runtime.gpu.tensorrt": True})
    assert message.count("\n  - ") == 3


def test_a_release_name_that_kserve_would_refuse() -> None:
    assert "nameOverride" in refusal({}, "9lives")
    assert "nameOverride" in refusal({}, "a" * 31)
