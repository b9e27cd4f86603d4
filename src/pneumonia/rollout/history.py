"""What an InferenceService served before, in a ConfigMap beside it, which `pneumoctl model rollback` needs."""

from __future__ import annotations

import json

from pneumonia.kubernetes import Namespace
from pneumonia.rollout.service import SERVICE_LABEL, Service, Variant

KEY = "history"
_LENGTH = 20


def read(namespace: Namespace, service: Service) -> list[Variant]:
    """What was served before what is served now, oldest first."""
    variants = _noted(namespace, service)
    while variants and variants[-1].uri == service.stable.uri:
        variants.pop()
    return variants


def remember(namespace: Namespace, service: Service, incoming: Variant) -> None:
    """Note what is about to be replaced by `incoming`; going back to the newest note takes it off instead."""
    before = read(namespace, service)
    back = bool(before) and before[-1].uri == incoming.uri
    kept = before if back else [*before, service.stable][-_LENGTH:]
    data = {KEY: json.dumps([{"name": entry.name, "uri": entry.uri} for entry in kept])}
    # Not an annotation of the InferenceService: KServe copies those to its pods, which would all restart.
    if namespace.get("configmaps", _name(service)) is not None:
        namespace.patch("configmaps", _name(service), {"data": data})
        return
    owner = service.raw
    metadata = {
        "name": _name(service),
        "labels": {SERVICE_LABEL: service.name},
        # Goes with it: a service that is installed anew has no history.
        "ownerReferences": [
            {key: owner[key] for key in ("apiVersion", "kind")}
            | {key: owner["metadata"][key] for key in ("name", "uid")}
        ],
    }
    namespace.create("configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def _noted(namespace: Namespace, service: Service) -> list[Variant]:
    found = namespace.get("configmaps", _name(service))
    entries = json.loads((found or {}).get("data", {}).get(KEY, "[]"))
    return [Variant(entry["name"], entry["uri"]) for entry in entries]


def _name(service: Service) -> str:
    return f"{service.name}-releases"
