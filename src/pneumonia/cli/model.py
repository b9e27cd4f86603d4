"""`pneumoctl model`: what is released, what is served, and changing it by hand."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pneumonia.rollout.rollout import Rollout

_SERVICE = typer.Option("pneumonia", "--service", "-s", help="Name of the InferenceService.")
_NAMESPACE = typer.Option("pneumonia", "--namespace", "-n", help="Its namespace.")
_CONTEXT = typer.Option(None, help="Context of the kubeconfig; default: its current one, or the pod's own account.")
_ROOT = typer.Option(..., help="Folder or s3://bucket/prefix that holds releases/.")
_REGISTRY = typer.Option(None, "--tracking-uri", help="MLflow with the model registry: local, or a server's address.")
_REGISTERED = typer.Option("pneumonia", help="Name of the model in the registry.")
_TIMEOUT = typer.Option(900.0, "--timeout", min=1, help="Seconds for the pods of a step to come up.")
_SERVICES = typer.Option(None, "--service", "-s", help="[NAMESPACE/]NAME that serves from here; may be repeated.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(no_args_is_help=True, help="Releases: what there is, what is served, promote, roll back.")
    for command in (list_releases, show, promote, rollback, prune):
        group.command(command.__name__.removesuffix("_releases"))(command)
    app.add_typer(group, name="model")


def _rollout(service: str, namespace: str, context: str | None, timeout_s: float = 900.0) -> Rollout:
    from pneumonia.kubernetes import KubernetesCluster
    from pneumonia.rollout.rollout import Rollout

    return Rollout(KubernetesCluster(context), service, namespace, timeout_s=timeout_s)


def _rollouts(services: list[str] | None, context: str | None) -> list[Rollout]:
    pairs = [service.rpartition("/") for service in services or ()]
    return [_rollout(name, namespace or "pneumonia", context) for namespace, _, name in pairs]


def list_releases(
    root: str = _ROOT,
    services: list[str] | None = _SERVICES,
    context: str | None = _CONTEXT,
    tracking_uri: str | None = _REGISTRY,
    registered_model: str = _REGISTERED,
) -> None:
    """One JSON line for each complete release, newest first, with what uses it."""
    from pneumonia.release.registry import aliased
    from pneumonia.release.stores import open_store
    from pneumonia.rollout.retention import in_use

    store, uses = open_store(root), in_use(_rollouts(services, context))
    aliases = aliased(tracking_uri, registered_model)
    for name, written in sorted(store.releases().items(), key=lambda item: item[1], reverse=True):
        manifest = store.manifest(name) or {}
        line = {"uri": store.uri(name), "model_id": manifest.get("model_id"),
                "library": manifest.get("library_version"),
                "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(written)), "use": uses.get(name),
                "aliases": sorted(alias for alias, release in aliases.items() if release == name)}  # fmt: skip
        print(json.dumps(line))


def show(service: str = _SERVICE, namespace: str = _NAMESPACE, context: str | None = _CONTEXT) -> None:
    """What an InferenceService serves, its canary, and what it would go back to."""
    rollout = _rollout(service, namespace, context)
    print(json.dumps(_state(rollout), indent=2))


def _state(rollout: Rollout) -> dict[str, Any]:
    service, history = rollout.read(), rollout.history()
    missing = rollout.workload_ready(service, service.stable.name, 1)
    return {
        "service": rollout.name,
        "stable": {**asdict(service.stable), "ready": missing is None, "waits_for": missing},
        "canary": [{**asdict(canary), **service.status_of(canary.name)} for canary in service.canaries],
        "shares_traffic": rollout.has_route(),
        "before": asdict(history[-1]) if history else None,
    }


def promote(
    release: str = typer.Argument(..., help="The release's URI, as `pneumoctl publish` printed it."),
    images: Path = typer.Option(..., help="Labelled images, among them those of the bundle's probe."),
    bundle: Path | None = typer.Option(None, help="The release's bundle; default: $PNEUMONIA_BUNDLE or ./models."),
    service: str = _SERVICE,
    namespace: str = _NAMESPACE,
    context: str | None = _CONTEXT,
    strategy: str = typer.Option("auto", help="canary shares traffic, shadow does not, auto: what the cluster can."),
    percent: int = typer.Option(10, help="The canary's share of the traffic before it is promoted, 1 to 99."),
    soak: float = typer.Option(300.0, min=0, help="Seconds that it has this share."),
    max_slowdown: float = typer.Option(1.25, min=1, help="Refuse it where its p95 is more than so many times the old."),
    timeout: float = _TIMEOUT,
    managed_by: str = typer.Option("deploy", help="As model.managedBy of the chart; values writes values files."),
    values_dir: Path | None = typer.Option(None, help="Folder for these files."),
    tracking_uri: str | None = _REGISTRY,
    registered_model: str = _REGISTERED,
) -> None:
    """Test a release beside the one that is served, share traffic with it, and let it take over; or remove it again.

    Exits 5, with every reason, where it was refused. Run it again after an interruption: it goes on.
    """
    from pneumonia.bundle import default_bundle
    from pneumonia.kubernetes import KubernetesCluster
    from pneumonia.rollout.deploy import deploy

    result = deploy(
        release, bundle or default_bundle(), images, service=service, namespace=namespace, managed_by=managed_by,
        values_dir=values_dir, cluster=None if managed_by == "values" else KubernetesCluster(context),
        strategy=strategy, percent=percent, soak_s=soak, timeout_s=timeout, max_slowdown=max_slowdown,
        tracking_uri=tracking_uri,
        registered_model=registered_model,
    )  # fmt: skip
    print(json.dumps(result.to_json(), indent=2))
    result.require()


def rollback(
    service: str = _SERVICE,
    namespace: str = _NAMESPACE,
    context: str | None = _CONTEXT,
    to: str | None = typer.Option(None, help="URI of the release to serve; default: the one that was served before."),
    timeout: float = _TIMEOUT,
    tracking_uri: str | None = _REGISTRY,
    registered_model: str = _REGISTERED,
) -> None:
    """Remove the canary where there is one; else serve again what was served before."""
    from pneumonia.release.registry import CHAMPION, set_alias
    from pneumonia.rollout.deploy import rollback as roll_back

    rollout = _rollout(service, namespace, context, timeout)
    served = roll_back(rollout, to)
    if version := set_alias(tracking_uri, registered_model, served, CHAMPION):
        rollout.changes.append(f"{CHAMPION} is version {version} of {registered_model}")
    print(json.dumps({"served": served, "changes": rollout.changes}, indent=2))


def prune(
    root: str = _ROOT,
    keep: int = typer.Option(..., min=1, help="Newest releases that stay in any case."),
    services: list[str] | None = _SERVICES,
    without_cluster: bool = typer.Option(False, "--without-cluster", help="No InferenceService serves from here."),
    context: str | None = _CONTEXT,
    tracking_uri: str | None = _REGISTRY,
    registered_model: str = _REGISTERED,
) -> None:
    """Delete old releases; never one that is served, tested, gone back to, or named by an alias of the registry."""
    from pneumonia.errors import UsageError
    from pneumonia.release.registry import aliased
    from pneumonia.release.stores import open_store
    from pneumonia.rollout.retention import in_use
    from pneumonia.rollout.retention import prune as prune_store

    if bool(services) == without_cluster:
        raise UsageError("name every InferenceService that serves from here with --service, or give --without-cluster")
    uses = in_use(_rollouts(services, context))
    uses.update({release: f"alias {alias}" for alias, release in aliased(tracking_uri, registered_model).items()})
    store = open_store(root)
    gone = [store.uri(name) for name in prune_store(store, keep, uses)]
    kept = {store.uri(name): uses.get(name, "among the newest") for name in store.releases()}
    print(json.dumps({"deleted": gone, "kept": kept}, indent=2))
