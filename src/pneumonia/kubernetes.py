"""The one door to a Kubernetes API server, and the paths behind it that releases and training jobs need."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pneumonia.errors import DependencyMissing, MissingPrerequisite, PneumoniaError, ServerUnavailable

FIELD_MANAGER = "pneumonia-deploy"
KSERVE_SINCE = "0.20"
"""The first KServe with spec.canary in Standard mode; traffic shares on its HTTPRoutes came with 0.21."""
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
_RETRIED = (429, 500, 502, 503, 504)
_ATTEMPTS = 4

_ROOTS = {
    "inferenceservices": "/apis/serving.kserve.io/v1beta1",
    "trainjobs": "/apis/trainer.kubeflow.org/v1alpha1",
    "servingruntimes": "/apis/serving.kserve.io/v1alpha1",
    "deployments": "/apis/apps/v1",
    "horizontalpodautoscalers": "/apis/autoscaling/v2",
    "httproutes": "/apis/gateway.networking.k8s.io/v1",
    "services": "/api/v1",
    "pods": "/api/v1",
    "configmaps": "/api/v1",
    "events": "/api/v1",
}
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def in_pod() -> bool:
    """Whether this process runs in a pod of a cluster."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def own_namespace() -> str:
    """That of this process's pod; `default` outside of pods."""
    return _OWN_NAMESPACE.read_text("utf-8").strip() if _OWN_NAMESPACE.is_file() else "default"


class ApiError(PneumoniaError):
    """What an API server refused. status: HTTP. kind_known: False where there is no such kind of object (no CRD)."""

    def __init__(self, status: int, message: str, kind_known: bool = True) -> None:
        self.status = status
        self.kind_known = kind_known
        super().__init__(message)


class Cluster(Protocol):
    """An API server."""

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """One call: GET, POST, DELETE or PATCH (JSON merge patch, RFC 7396) -> the answered object.

        Raises ApiError for an answer of 400 and above, ServerUnavailable for none.
        """
        ...


class KubernetesCluster:
    """Through the `kubernetes` client: a pod's own account, or the kubeconfig ($KUBECONFIG) of whoever calls.

    api: a kubernetes.client.ApiClient that is set up already. attempts: for what only reads, where the server is busy.
    """

    def __init__(self, context: str | None = None, *, api: Any = None, attempts: int | None = None) -> None:
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise DependencyMissing(f"{error.name} is not installed; pip install 'pneumonia[pipelines]'") from error
        self._api_exception = client.ApiException
        self._attempts = _ATTEMPTS if attempts is None else attempts
        if api is not None:
            self._api = api
            return
        try:
            given = os.environ.get("KUBECONFIG")
            if given is None and context is None and in_pod():
                config.load_incluster_config()
            else:
                config.load_kube_config(given, context)
        except (config.ConfigException, OSError) as error:
            raise MissingPrerequisite(
                f"no cluster to talk to ({' '.join(str(error).split())}); set KUBECONFIG, choose a context that it "
                "has, or run in a pod"
            ) from error
        self._api = client.ApiClient()

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """See `Cluster`. What only reads is tried again where the server is busy."""
        for attempt in range(1, self._attempts + 1):
            try:
                return self._once(method, path, body, query)
            except (ApiError, ServerUnavailable) as error:
                passing = isinstance(error, ServerUnavailable) or error.status in _RETRIED
                if method != "GET" or not passing or attempt == self._attempts:
                    raise
            time.sleep(2**attempt / 4)
        raise AssertionError("unreachable")

    def text(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """What is not JSON, such as a container's log. Raises as `request` does."""
        return str(self._call("GET", path, None, query, "str"))

    def _once(
        self, method: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, str] | None
    ) -> dict[str, Any]:
        return dict(self._call(method, path, body, query, "object"))

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, str] | None, answer: str
    ) -> Any:
        import urllib3

        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            return self._api.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json" if answer == "object" else "*/*", "Content-Type": kind},
                body=body,
                response_type=answer,
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            )
        except self._api_exception as error:
            raise _api_error(int(error.status or 0), error.body or error.reason or "") from error
        except urllib3.exceptions.HTTPError as error:
            raise ServerUnavailable(
                f"no answer from the cluster at {self._api.configuration.host} ({error}); check KUBECONFIG and the "
                "network"
            ) from error


def _api_error(status: int, body: str | bytes) -> ApiError:
    """An answer's Status object in one line; without one, or without its object's name, the path itself is unknown."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    try:
        said = json.loads(text)
        message, details = str(said["message"]), said.get("details") or {}
    except (ValueError, TypeError, KeyError):
        return ApiError(status, " ".join(text.split())[:300] or "no reason given", kind_known=status != 404)
    return ApiError(status, " ".join(message.split()), kind_known=status != 404 or bool(details.get("name")))


def path_of(kind: str, namespace: str, name: str = "") -> str:
    """Where the API has objects of a kind, or one of them."""
    return f"{_ROOTS[kind]}/namespaces/{namespace}/{kind}{'/' if name else ''}{name}"


_ADVICE = {
    401: "log in to the cluster again",
    403: "the chart gives a ServiceAccount these rights with deployStep.enabled and deployStep.serviceAccounts",
    404: "check the namespace and what is installed in it",
    422: "check that KServe's CRDs and its controller are of one version",
}


class Namespace:
    """Objects of one namespace by kind and name; the API's refusals become errors that say what to do."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.name = namespace

    def require(self, rights: Iterable[tuple[str, str]], name: str = "") -> None:
        """Ask whether this account may do `rights`, verbs with kinds, to `name`, or to any of the kind.

        Raises MissingPrerequisite that names all that it may not.
        """
        missing = []
        for verb, kind in rights:
            group = _ROOTS[kind].split("/")[2] if _ROOTS[kind].startswith("/apis/") else ""
            asked = {"namespace": self.name, "verb": verb, "group": group, "resource": kind, "name": name}
            review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                      "spec": {"resourceAttributes": asked}}  # fmt: skip
            try:
                answer = self.cluster.request("POST", _REVIEWS, review)
            except ApiError as error:
                raise self.explain(error, verb, kind, name) from error
            if not answer.get("status", {}).get("allowed"):
                missing.append(f"{verb} {kind}")
        if missing:
            raise MissingPrerequisite(
                f"this account may not {', '.join(missing)}{f' ({name})' if name else ''} in namespace {self.name}; "
                f"{_ADVICE[403]}"
            )

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """The object, or None where there is none."""
        try:
            return self.cluster.request("GET", self._path(kind, name))
        except ApiError as error:
            # A cluster without the Gateway API has no routes; every other kind is needed.
            if error.status == 404 and (error.kind_known or kind == "httproutes"):
                return None
            raise self.explain(error, "get", kind, name) from error

    def list(
        self, kind: str, labels: Mapping[str, str] | None = None, fields: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Objects that carry all `labels`, and whose `fields` (such as involvedObject.name) have these values."""
        chosen = {"labelSelector": labels, "fieldSelector": fields}
        query = {key: ",".join(f"{a}={b}" for a, b in pairs.items()) for key, pairs in chosen.items() if pairs}
        selector = ",".join(query.values())
        try:
            found = self.cluster.request("GET", self._path(kind), query=query)
        except ApiError as error:
            raise self.explain(error, "list", kind, selector) from error
        return list(found.get("items", ()))

    def create(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A new object."""
        try:
            return self.cluster.request("POST", self._path(kind), body, {"fieldManager": FIELD_MANAGER})
        except ApiError as error:
            raise self.explain(error, "create", kind, body["metadata"]["name"]) from error

    def patch(self, kind: str, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """JSON merge patch. Raises ApiError itself for 409: the object changed since the patch was made."""
        try:
            return self.cluster.request("PATCH", self._path(kind, name), body, {"fieldManager": FIELD_MANAGER})
        except ApiError as error:
            if error.status == 409:
                raise
            raise self.explain(error, "patch", kind, name) from error

    def delete(self, kind: str, name: str) -> None:
        """Gone, or gone already."""
        try:
            self.cluster.request("DELETE", self._path(kind, name))
        except ApiError as error:
            if error.status != 404:
                raise self.explain(error, "delete", kind, name) from error

    def _path(self, kind: str, name: str = "") -> str:
        return path_of(kind, self.name, name)

    def explain(self, error: ApiError, verb: str, kind: str, name: str) -> PneumoniaError:
        """The library's own error for a refusal, with what to do about it."""
        what = f"{verb} {kind} {name} in namespace {self.name}"
        if "admission webhook" in str(error):
            # KServe's rules; the answer is 403 as for missing rights.
            return MissingPrerequisite(f"{what}: KServe refuses it: {error}")
        if error.status == 404 and not error.kind_known and kind == "inferenceservices":
            return MissingPrerequisite(
                f"{what}: this cluster knows no InferenceService; install KServe {KSERVE_SINCE} or newer ({error})"
            )
        advice = _ADVICE.get(error.status, "try again; what was done so far stays, and the next run goes on from it")
        return MissingPrerequisite(f"{what}: the cluster answers {error.status} ({error}); {advice}")
