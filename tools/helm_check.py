#!/usr/bin/env python3
"""Lints and renders the Helm chart with Helm's own engine for each file of its ci/, and checks every object.

Objects have to fit the Kubernetes schemas and the CustomResourceDefinitions in a folder (default: ../shared/schemas;
PNEUMONIA_CRDS names another), no field unknown, and the `restricted` Pod Security Standard.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm" / "pneumonia"
CRDS = Path(os.environ.get("PNEUMONIA_CRDS", ROOT.parent / "shared" / "schemas"))
KUBERNETES = ("1.30", "1.37")
"""Oldest version supported and the newest one checked."""
NAMESPACE = "pneumonia"
RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"
}  # fmt: skip

Object = dict[str, Any]


def render(values: Object, name: str = "pneumonia", chart: Path = CHART) -> dict[str, str]:
    """Text by template. Raises helm_python.HelmError where the values are refused."""
    import helm_python

    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        texts: dict[str, str] = loaded.render(values, name=name, namespace=NAMESPACE, is_install=True)
        return texts


def objects(values: Object, name: str = "pneumonia", chart: Path = CHART) -> list[Object]:
    """Every object that the values render to."""
    texts = [text for path, text in sorted(render(values, name, chart).items()) if path.endswith(".yaml")]
    return [item for text in texts for item in yaml.safe_load_all(text) if item]


def called(item: Object) -> str:
    """Kind and name, for messages."""
    return f"{item.get('kind')}/{item.get('metadata', {}).get('name')}"


@functools.cache
def crd_schemas(folder: Path = CRDS) -> dict[tuple[str, str], Object]:
    """Schema by (apiVersion, kind) of every CustomResourceDefinition in the folder, closed to unknown fields."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        if path.name.startswith(("argoproj.io", "trainer.")):
            continue  # The chart has none of these, and they are large.
        spec = yaml.load(path.read_text("utf-8"), Loader=loader)["spec"]
        for version in spec["versions"]:
            key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            found[key] = close(version["schema"]["openAPIV3Schema"], root=True)
    return found


def close(schema: Object, root: bool = False) -> Object:
    """An openAPIV3Schema as a JSON schema that refuses what an API server would drop: fields it does not list."""
    schema = dict(schema)
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema:
        schema["properties"] = {name: close(child) for name, child in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = close(schema[key])
    if root:
        schema["properties"] |= {"metadata": {"type": "object"}, "kind": {}, "apiVersion": {}}
    return schema


def schema_problems(item: Object) -> Iterator[str]:
    """Where an object does not fit its schema. The meta data of custom objects is checked by name only."""
    import jsonschema
    import kubernetes_validate

    schema = crd_schemas().get((item["apiVersion"], item["kind"]))
    if schema is not None:
        for error in jsonschema.Draft202012Validator(schema).iter_errors(item):
            yield f"{called(item)}: {error.json_path}: {error.message[:300]}"
        return
    if not crd_schemas() and "." in item["apiVersion"] and ".k8s.io" not in item["apiVersion"]:
        return  # main says so.
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            yield f"{called(item)}: no schema for {item['apiVersion']} {item['kind']}"
        except kubernetes_validate.ValidationError as error:
            where = ".".join(map(str, error.path))
            yield f"{called(item)}: Kubernetes {version}: {where}: {error.message[:300]}"


def pods(item: Object) -> Iterator[tuple[str, Object]]:
    """Pod specifications inside an object: (what it is, specification with its containers)."""
    name, spec = called(item), item.get("spec", {})
    if item["kind"] == "InferenceService":
        for place, predictor in [("predictor", spec["predictor"])] + [
            (f"canary {entry['predictor']['name']}", entry["predictor"]) for entry in spec.get("canary", [])
        ]:
            yield f"{name} {place}", {"containers": [], **predictor}
    elif item["kind"] == "Pod":
        yield name, spec
    elif "template" in spec and isinstance(spec["template"].get("spec"), dict):
        yield name, spec["template"]["spec"]
    elif item["kind"] == "ServingRuntime":
        # It has no security context of its own for the pod; the InferenceService's pod gives that.
        yield name, {**spec, "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}}


def restricted_problems(item: Object) -> Iterator[str]:
    """What the `restricted` Pod Security Standard (v1.30 and later) would refuse, and a writable root file system."""
    for name, pod in pods(item):
        pod_security = pod.get("securityContext", {})
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(key):
                yield f"{name}: {key}"
        for volume in pod.get("volumes", []):
            if kinds := set(volume) - {"name"} - RESTRICTED_VOLUMES:
                yield f"{name}: volume {volume['name']} is of the kind {', '.join(kinds)}"
        if pod_security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: no seccomp profile for the whole pod"
        if not pod_security.get("runAsNonRoot"):
            yield f"{name}: runAsNonRoot is not set for the whole pod"
        if pod_security.get("runAsUser", 1) == 0:
            yield f"{name}: runs as root"
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield from (f"{name} {container['name']}: {text}" for text in container_problems(container))


def container_problems(container: Object) -> Iterator[str]:
    """What is too open about one container."""
    security = container.get("securityContext", {})
    wanted = {
        "allowPrivilegeEscalation": False, "runAsNonRoot": True, "readOnlyRootFilesystem": True
    }  # fmt: skip
    for key, value in wanted.items():
        if security.get(key) is not value:
            yield f"{key} is not {value}"
    if security.get("privileged"):
        yield "privileged"
    if security.get("runAsUser", 1) == 0:
        yield "runs as root"
    capabilities = security.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"capabilities {capabilities}"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "hostPort"
    if security.get("seccompProfile", {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
        yield "seccomp profile"


def problems(values: Object) -> list[str]:
    """Everything wrong with what these values render to."""
    import helm_python

    report = helm_python.lint(CHART, values, strict=True, namespace=NAMESPACE)
    found = [f"lint: {message['error']}" for message in report["messages"] if message["severity"] >= 2]
    found += [f"lint: {error}" for error in report["errors"]]
    seen: set[tuple[str, str, str]] = set()
    for item in objects(values):
        key = item["apiVersion"], item["kind"], item["metadata"]["name"]
        if key in seen:
            found.append(f"{called(item)}: rendered twice")
        seen.add(key)
        found += [*schema_problems(item), *restricted_problems(item)]
    return found


def main() -> int:
    if not crd_schemas():
        print(f"note: no CustomResourceDefinitions in {CRDS}: custom objects are not checked", file=sys.stderr)
    failed = False
    for path in sorted((CHART / "ci").glob("*.yaml")):
        values = yaml.safe_load(path.read_text("utf-8"))
        found = problems(values)
        failed |= bool(found)
        print(f"{path.stem:14} {len(objects(values)):3} objects  {'failed' if found else 'ok'}")
        for line in found:
            print(f"  {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
