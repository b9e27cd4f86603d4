"""A service's whole life on a real cluster, while clients ask twenty times a second at both of its addresses.

The tests of this file follow each other on one installation: each begins where the one before ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from pneumonia import contract
from tests.bundles import xray
from tests.cluster.asking import Asking, ask
from tests.cluster.commands import block, here
from tests.cluster.conftest import NAME, Namespace, Releases, eventually

# What else runs on the nodes must not decide a test that is not about speed.
SOAK = ("--soak", "5", "--timeout", "120", "--max-slowdown", "10")
KILLS = int(os.environ.get("CLUSTER_KILLS", "10"))
IMAGE = xray(1)


@pytest.fixture(scope="module")
def service(namespace: Namespace, releases: Releases) -> Namespace:
    """Installed with the first release."""
    namespace.install(releases.uris[0])
    eventually(lambda: answers(namespace), "the gateway leads to the service")
    return namespace


def answers(service: Namespace) -> bool:
    with contextlib.suppress(OSError):
        return bool(ask(os.environ["CLUSTER_GATEWAY"], IMAGE, service.host()))
    return False


@contextlib.contextmanager
def nothing_fails(service: Namespace, gateway: bool = True) -> Iterator[tuple[Asking, Asking]]:
    """Clients at the gateway and at the Service's name; fails where one of their requests does."""
    through = Asking(os.environ["CLUSTER_GATEWAY"], IMAGE, service.host())
    inside = Asking(f"http://{NAME}.{service.name}.svc", IMAGE)
    with inside:
        if gateway:
            with through:
                yield through, inside
        else:
            yield through, inside
    for name, asking in (("gateway", through), ("Service", inside)):
        if asking.asked:
            print(f"{name}: {asking.said()}; answered by {dict(asking.models)}")
        assert not asking.failures, f"{name}: {asking.said()}"


def other(service: Namespace, releases: Releases) -> int:
    """The release that is not served."""
    return 1 - releases.uris.index(service.stable())


def promoted(service: Namespace, releases: Releases, which: int) -> None:
    """Served, with no canary left, whatever the road."""
    spec = service.get("inferenceservice", NAME)["spec"]
    assert service.stable() == releases.uris[which] and "canary" not in spec
    deployments = [item["metadata"]["name"] for item in service.get("deployments")]
    assert deployments == [f"{NAME}-{spec['predictor']['name']}-predictor"]
    selector = service.get("service", NAME)["spec"]["selector"]
    assert selector == {"app": f"isvc.{deployments[0]}"}


def test_helm_test_passes_with_logs_and_twice(service: Namespace) -> None:
    (command,) = [line for line in block("docs/operate.md", "helm test") if line.startswith("helm test")][:1]
    words = here(command, service.name).split()
    for _ in range(2):
        said = service.helm(*words[1:2], NAME, "--logs")
        assert "Succeeded" in said and any(label in said for label in contract.LABELS)
    assert words[2] == NAME and "--logs" in words


def test_a_promotion_costs_no_request(service: Namespace, releases: Releases) -> None:
    which = other(service, releases)
    with nothing_fails(service) as (through, inside):
        time.sleep(3)
        service.model(*releases.promote(which, *SOAK))
        time.sleep(3)
    promoted(service, releases, which)
    models = [bundle.model_id for bundle in releases.world.bundles]
    assert set(through.models) == set(inside.models) == set(models)


def test_a_rollback_costs_no_request(service: Namespace, releases: Releases) -> None:
    which = other(service, releases)
    with nothing_fails(service):
        service.model("rollback")
        time.sleep(3)
    promoted(service, releases, which)


def test_an_upgrade_after_a_promotion_keeps_it(service: Namespace, releases: Releases) -> None:
    which = other(service, releases)
    with nothing_fails(service):
        service.model(*releases.promote(which, *SOAK))
        service.upgrade(podAnnotations__changed="after")
        time.sleep(3)
    promoted(service, releases, which)
    (pod,) = running(service)
    assert pod["metadata"]["annotations"]["changed"] == "after"


def test_an_upgrade_during_a_canary_leaves_it(service: Namespace, releases: Releases) -> None:
    which = other(service, releases)
    with nothing_fails(service):
        command = service.pneumoctl(*releases.promote(which, *SOAK, "--soak", "40"))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if " answers 10 % " in line:
                break
        # The predictors' Deployments come and go meanwhile.
        service.upgrade(wait=False, podAnnotations__changed="during")
        assert service.get("inferenceservice", NAME)["spec"]["canary"][0]["trafficPercent"] == 10
        rest = process.stderr.read()
        assert process.wait(240) == 0, rest
        time.sleep(3)
    promoted(service, releases, which)


def running(service: Namespace) -> list[dict[str, object]]:
    """Pods of the service that are not on their way out."""
    pods = service.get("pods", "-l", f"serving.kserve.io/inferenceservice={NAME}")
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def test_scaling_and_a_promotion_of_two_pods(service: Namespace, releases: Releases) -> None:
    which = other(service, releases)
    with nothing_fails(service):
        service.upgrade(scaling__minReplicas=2, scaling__maxReplicas=2)
        eventually(lambda: len(running(service)) == 2, "two pods")
        service.model(*releases.promote(which, *SOAK))
        time.sleep(3)
    promoted(service, releases, which)
    assert len(running(service)) == 2


def test_pods_that_are_deleted_one_by_one_take_no_request_with_them(service: Namespace, releases: Releases) -> None:
    which = 1 - other(service, releases)
    with nothing_fails(service):
        for pod in running(service):
            service.kubectl("delete", "pod", pod["metadata"]["name"])  # type: ignore[index]
            service.ready()
        time.sleep(3)
    promoted(service, releases, which)


def test_scalers_of_predictors_that_are_gone_go(service: Namespace, releases: Releases) -> None:
    service.upgrade(scaling__type="hpa", scaling__minReplicas=1, scaling__maxReplicas=2)
    eventually(lambda: len(service.get("hpa")) == 1, "a scaler")
    which = other(service, releases)
    with nothing_fails(service):
        service.model(*releases.promote(which, *SOAK))
        time.sleep(3)
    promoted(service, releases, which)
    predictor = service.get("inferenceservice", NAME)["spec"]["predictor"]["name"]
    assert [item["metadata"]["name"] for item in service.get("hpa")] == [f"{NAME}-{predictor}-predictor"]
    service.upgrade(scaling__type="none", scaling__maxReplicas=1)


def test_exposure_can_be_taken_away_and_given_back(service: Namespace) -> None:
    gateway, host = os.environ["CLUSTER_GATEWAY"], service.host()
    hosts = [host, host.replace(f"{NAME}-", f"{NAME}-predictor-", 1)]

    def closed(host: str) -> bool:
        try:
            ask(gateway, IMAGE, host)
        except OSError as error:
            return getattr(error, "code", 404) == 404
        return False

    assert not any(closed(one) for one in hosts)
    with nothing_fails(service, gateway=False):
        service.upgrade(gateway__exposed="false")
        for one in hosts:
            eventually(lambda one=one: closed(one), f"{one} is closed", 30)  # type: ignore[misc]
        assert not service.get("httproutes")
        service.upgrade(gateway__exposed="true")
        eventually(lambda: not any(closed(one) for one in hosts), "both hosts are open again")


@pytest.mark.parametrize("place", range(1, KILLS + 1))
def test_a_promotion_that_is_killed_is_ended_by_the_next(service: Namespace, releases: Releases, place: int) -> None:
    """SIGKILL after so many lines of progress; the next run ends with the wanted release."""
    which = other(service, releases)
    with nothing_fails(service):
        command = service.pneumoctl(*releases.promote(which, *SOAK))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for number, line in enumerate(process.stderr, 1):
            if number == place:
                print(f"killed after: {line.strip()}")
                process.send_signal(signal.SIGKILL)
                break
        process.stderr.close()
        assert process.wait(60) == -signal.SIGKILL
        service.model(*releases.promote(which, *SOAK))
        time.sleep(2)
    promoted(service, releases, which)


def test_nothing_is_left_after_an_uninstall(service: Namespace) -> None:
    service.helm("uninstall", NAME)
    kinds = "inferenceservices,deployments,services,httproutes,pods,hpa,servingruntimes,networkpolicies,roles"
    eventually(lambda: not service.kubectl("get", kinds, "-o", "name").split(), "everything is gone", 120)
    left = service.kubectl("get", "configmaps,secrets,serviceaccounts", "-o", "name").split()
    assert set(left) <= {"configmap/kube-root-ca.crt", "configmap/istio-ca-root-cert", "serviceaccount/default"}
