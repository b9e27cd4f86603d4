"""The real Kubernetes client, over HTTP, and real processes that are killed for good."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pneumonia.errors import MissingPrerequisite, ServerUnavailable
from pneumonia.kubernetes import ApiError, KubernetesCluster, Namespace
from pneumonia.rollout.deploy import deploy
from tests.rollout.clusters import NAMESPACE, RULES, SERVICE, World, make_world, spec_of
from tests.rollout.fake_cluster import FakeCluster
from tests.rollout.fake_http import serve, write_kubeconfig

pytest.importorskip("kubernetes", reason="kubernetes is not installed; pip install 'pneumonia[pipelines]'")
PATH = f"/apis/serving.kserve.io/v1beta1/namespaces/{NAMESPACE}/inferenceservices/{SERVICE}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., KubernetesCluster]]:
    """A client of a cluster in memory, with HTTP between them."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def connect(cluster: FakeCluster, **options: Any) -> KubernetesCluster:
            url = stack.enter_context(serve(cluster, **options))
            monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "kubeconfig", url)))
            return KubernetesCluster()

        yield connect


def test_a_release_is_deployed_through_the_real_client(world: World, talk: Callable[..., KubernetesCluster]) -> None:
    cluster = world.cluster()
    arguments = {"cluster": talk(cluster), "connect": cluster.connect, **RULES}
    result = deploy(str(world.releases[1]), world.bundles[1].path, world.images, **arguments)
    assert (result.outcome, result.strategy) == ("promoted", "canary")
    assert cluster.traffic(NAMESPACE, SERVICE) == {str(world.releases[1]): 100}
    assert not set(cluster.log) - {line for line in cluster.log if line.partition(" ")[0] in ("GET", "PATCH", "POST")}


def test_refusals_come_through_with_their_reason(world: World, talk: Callable[..., KubernetesCluster]) -> None:
    cluster = world.cluster()
    client = talk(cluster)
    with pytest.raises(ApiError, match="object has been modified") as conflict:
        client.request("PATCH", PATH, {"metadata": {"resourceVersion": "0"}})
    assert conflict.value.status == 409
    with pytest.raises(MissingPrerequisite, match=r"KServe refuses it.*'name' field is not allowed"):
        Namespace(client, NAMESPACE).patch(
            "inferenceservices", SERVICE, {"spec": {"predictor": {"model": {"name": "x"}}}}
        )
    assert Namespace(client, NAMESPACE).get("inferenceservices", "other") is None
    cluster.forbidden = frozenset({("get", "deployments")})
    with pytest.raises(MissingPrerequisite, match=r"answers 403 .*is forbidden.*deployStep"):
        Namespace(client, NAMESPACE).get("deployments", "x")
    cluster.gateway = False
    assert Namespace(client, NAMESPACE).get("httproutes", SERVICE) is None
    cluster.kserve = "none"
    with pytest.raises(MissingPrerequisite, match="knows no InferenceService"):
        Namespace(client, NAMESPACE).get("inferenceservices", SERVICE)


def test_no_cluster_and_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(MissingPrerequisite, match="set KUBECONFIG"):
        KubernetesCluster()
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:9")))
    with pytest.raises(MissingPrerequisite, match="context"):
        KubernetesCluster("other")
    monkeypatch.setattr("pneumonia.kubernetes._ATTEMPTS", 1)
    with pytest.raises(ServerUnavailable, match=r"no answer from the cluster at http://127.0.0.1:9"):
        KubernetesCluster().request("GET", PATH)


def pneumoctl(*arguments: str) -> subprocess.Popen[str]:
    # What a real gateway and real nodes are given time for, this cluster does at once.
    code = "import time; wait = time.sleep; time.sleep = lambda seconds: wait(min(seconds, 0.05))\n"
    code += "from pneumonia.cli.app import main; main()"
    command = [sys.executable, "-c", code, "model", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy())


def said(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def test_show_and_roll_back_from_the_command_line(world: World, talk: Callable[..., KubernetesCluster]) -> None:
    old, new = map(str, world.releases)
    cluster = world.cluster()
    client = talk(cluster)
    deploy(new, world.bundles[1].path, world.images, cluster=client, connect=cluster.connect, **RULES)
    shown = said(pneumoctl("show"))
    assert shown["stable"]["uri"] == new and shown["stable"]["ready"] and shown["before"]["uri"] == old
    back = said(pneumoctl("rollback"))
    assert back["served"] == old and any(f"{old} is served now" in change for change in back["changes"])
    assert cluster.traffic(NAMESPACE, SERVICE) == {old: 100}
    refused = pneumoctl("rollback")
    _, err = refused.communicate(timeout=120)
    assert refused.returncode == 4 and "name a release with --to" in err and "Traceback" not in err


def test_a_rollback_killed_for_good_after_each_write_goes_on(
    world: World, talk: Callable[..., KubernetesCluster], tmp_path: Path
) -> None:
    """SIGKILL to a real `pneumoctl`, when the server has done what it asked and not yet answered."""
    old, new = map(str, world.releases)
    cluster = world.cluster()
    child: list[subprocess.Popen[str]] = []
    writes = [0, 0]  # seen, and the one to die after

    def after(calls: int) -> None:
        if not cluster.log[-1].startswith("GET"):
            writes[0] += 1
            if child and writes[0] == writes[1]:
                os.kill(child[0].pid, signal.SIGKILL)

    client = talk(cluster, after=after)
    for last in (1, 2, 3, 4, 5):
        deploy(new, world.bundles[1].path, world.images, cluster=client, connect=cluster.connect, **RULES)
        writes[:] = [0, last]
        child[:] = [pneumoctl("rollback")]
        child[0].communicate(timeout=120)
        # A rollback writes five times: the canary, its share, the Service, the history, and the promotion.
        assert child[0].returncode == -signal.SIGKILL
        child.clear()
        cluster.settle()
        assert cluster.traffic(NAMESPACE, SERVICE) == {new if last == 1 else old: 100}
        assert cluster.inside(NAMESPACE, SERVICE) == (new if last <= 2 else old)
        if last <= 4:
            assert said(pneumoctl("rollback"))["served"] == old
        assert spec_of(cluster)["predictor"]["model"]["storageUri"] == old and "canary" not in spec_of(cluster)
