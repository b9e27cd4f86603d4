"""MLflow's model registry follows publications and promotions, and protects what it names from pruning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.cli import release as publish_cli
from pneumonia.errors import ServerUnavailable
from pneumonia.release.publish import publish
from pneumonia.release.registry import aliased, set_alias
from pneumonia.release.stores import FolderStore
from pneumonia.rollout.deploy import deploy, rollback
from pneumonia.rollout.retention import in_use, prune
from pneumonia.rollout.rollout import Rollout
from tests.bundles import tiny_bundle
from tests.rollout.clusters import NAMESPACE, RULES, SERVICE, make_world

pytest.importorskip("mlflow", reason="mlflow is not installed; pip install 'pneumonia[train]'")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of its own for each test."""
    monkeypatch.setenv(contract.TRACKING_DIR_ENV, str(tmp_path / "mlflow"))


def test_candidate_when_published_champion_when_promoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = make_world(tmp_path / "world")
    publish_cli.publish(world.bundles[1].path, str(tmp_path / "world" / "root"), "python", None, "local", "pneumonia")
    printed = json.loads(capsys.readouterr().out)
    name = world.releases[1].name
    assert printed["release"] == str(world.releases[1]) and printed["registered_version"] == "1"
    assert aliased("local", "pneumonia") == {"candidate": name}
    cluster = world.cluster()
    rules: dict[str, Any] = {"cluster": cluster, "connect": cluster.connect, "tracking_uri": "local", **RULES}
    result = deploy(str(world.releases[1]), world.bundles[1].path, world.images, **rules)
    assert "champion is version 1 of pneumonia" in result.changes
    assert aliased("local", "pneumonia") == {"candidate": name, "champion": name}
    # The run that was killed between promotion and alias.
    set_alias("local", "pneumonia", str(world.releases[0]), "champion")
    again = deploy(str(world.releases[1]), world.bundles[1].path, world.images, **rules)
    assert again.outcome == "unchanged" and aliased("local", "pneumonia")["champion"] == name


def test_the_same_release_is_one_version(bundle: Bundle, tmp_path: Path) -> None:
    release = publish(bundle.path, tmp_path)
    versions = [
        set_alias("local", "m", str(release), alias, bundle.digest) for alias in ("candidate", "x", "candidate")
    ]
    assert versions == ["1", "1", "1"]
    other = publish(tiny_bundle(tmp_path / "other", threshold=0.2).path, tmp_path)
    assert set_alias("local", "m", str(other), "candidate") == "2"
    assert aliased("local", "m") == {"candidate": other.name, "x": release.name}
    assert aliased("local", "nobody") == {} and set_alias(None, "m", str(release), "candidate") is None


def test_a_registry_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailable, match=r"tracking\.uri=http://127\.0\.0\.1:9"):
        set_alias("http://127.0.0.1:9", "m", "s3://models/releases/x", "candidate")


def test_prune_keeps_what_is_served_tested_gone_back_to_or_named(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    store = FolderStore(tmp_path / "world" / "root")
    others = [
        publish(tiny_bundle(tmp_path / f"{t}", threshold=t).path, tmp_path / "world" / "root") for t in (0.1, 0.2, 0.3)
    ]
    set_alias("local", "pneumonia", str(others[0]), "candidate")
    cluster = world.cluster()
    rollout = Rollout(cluster, SERVICE, NAMESPACE, cluster.connect, poll_s=0)
    deploy(
        str(world.releases[1]), world.bundles[1].path, world.images, cluster=cluster, connect=cluster.connect, **RULES
    )
    uses = {**in_use([rollout]), **{name: alias for alias, name in aliased("local", "pneumonia").items()}}
    assert uses == {
        world.releases[0].name: "served by pneumonia before",
        world.releases[1].name: "served by pneumonia",
        others[0].name: "candidate",
    }
    assert prune(store, 1, uses) == [others[1].name]
    assert set(store.releases()) == {world.releases[0].name, world.releases[1].name, others[0].name, others[2].name}
    assert rollback(rollout) == str(world.releases[0])
