"""Which releases may go: never one that is served, may be gone back to, or has a name in the registry."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pneumonia.errors import UsageError
from pneumonia.release.stores import Store
from pneumonia.release_manifest import release_name_of
from pneumonia.rollout.rollout import Rollout


def in_use(rollouts: Iterable[Rollout]) -> dict[str, str]:
    """Releases that InferenceServices serve, test or would go back to: release name -> why it stays."""
    uses: dict[str, str] = {}
    for rollout in rollouts:
        service = rollout.read()
        if before := rollout.history():
            uses[release_name_of(before[-1].uri)] = f"served by {rollout.name} before"
        for canary in service.canaries:
            uses[release_name_of(canary.uri)] = f"canary of {rollout.name}"
        if service.stable.uri:
            uses[release_name_of(service.stable.uri)] = f"served by {rollout.name}"
    return uses


def prune(store: Store, keep: int, protected: Collection[str]) -> list[str]:
    """Delete all but the `keep` newest complete releases and the `protected` ones; the names of those deleted.

    What is half written is left alone: someone may be writing it. Raises UsageError for keep < 1, since the newest
    release may be about to be deployed.
    """
    if keep < 1:
        raise UsageError(f"--keep {keep}: keep at least the newest release")
    releases = store.releases()
    newest_first = sorted(releases, key=lambda name: (releases[name], name), reverse=True)
    gone = [name for name in newest_first[keep:] if name not in protected]
    for name in gone:
        store.remove(name)
    return gone
