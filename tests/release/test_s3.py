"""Publishing to a real S3 server: whole or not at all, whatever kills it, and never twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.errors import BundleError, MissingPrerequisite, ServerUnavailable, UsageError
from pneumonia.release import stores
from pneumonia.release.publish import publish, publish_release
from pneumonia.release.stores import S3Store, open_store
from pneumonia.release_manifest import verify_release
from pneumonia.rollout.retention import prune
from tests.bundles import tiny_bundle
from tests.release.killing import die, killed
from tests.s3 import BUCKET, KEY, SECRET, s3_server

pytest.importorskip("boto3", reason="boto3 is not installed; pip install 'pneumonia[s3]'")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(autouse=True)
def environment(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    client = S3Store(BUCKET, "").client
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)


@pytest.fixture
def root(request: pytest.FixtureRequest) -> str:
    """A prefix of its own for each test."""
    return f"s3://{BUCKET}/{request.node.name}".replace("[", "-").replace("]", "")


def content(root: str) -> dict[str, tuple[str, Any]]:
    """ETag and time of every object: what would change if anything was written again."""
    store = open_store(root)
    assert isinstance(store, S3Store)
    return {key: (entry["ETag"], entry["LastModified"]) for key, entry in store._list(store.prefix).items()}


def download(root: str, target: Path) -> Path:
    """What a storage initializer does with the one release under `root`."""
    store = open_store(root)
    assert isinstance(store, S3Store)
    (name,) = store.releases()
    for key in store._list(store._key(name)):
        path = target / key.removeprefix(store._key(name) + "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store._read(key) or b"")
    return target


def test_a_release_in_a_bucket_is_the_one_in_a_folder(bundle: Bundle, root: str, tmp_path: Path) -> None:
    release = publish_release(bundle.path, root)
    folder = publish(bundle.path, tmp_path / "folder")
    assert release.uri == f"{root}/releases/{release.name}" and release.name == folder.name
    got = verify_release(download(root, tmp_path / "mnt"))
    assert got == release.manifest and got["model_id"] == bundle.model_id
    before = content(root)
    assert publish_release(bundle.path, root) == release
    assert content(root) == before


class DiesAtWrite:
    """A client that kills its own process after its n-th write."""

    def __init__(self, client: Any, writes: int) -> None:
        self._client, self._left = client, writes

    def __getattr__(self, name: str) -> Any:
        if name not in ("put_object", "delete_object"):
            return getattr(self._client, name)

        def write(**arguments: Any) -> Any:
            answer = getattr(self._client, name)(**arguments)
            self._left -= 1
            if self._left == 0:
                die()
            return answer

        return write


def publish_and_die(bundle: Path, root: str, writes: int) -> None:
    client = stores._client()
    stores._client = lambda: DiesAtWrite(client, writes)
    publish_release(bundle, root)


def test_killed_at_every_write_there_is_no_half_release_and_the_next_run_completes_it(
    bundle: Bundle, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = stores._client()  # Making one takes longer than publishing.
    monkeypatch.setattr(stores, "_client", lambda: client)
    first = publish_release(tiny_bundle(tmp_path / "first", threshold=0.3).path, f"{root}/0")
    writes = 1
    while True:
        here = f"{root}/{writes}"
        old = publish_release(tmp_path / "first", here)
        before = content(here)
        died = killed(publish_and_die, bundle.path, here, writes)
        complete = set(open_store(here).releases())
        # What is served is never touched, and what is half written is no release.
        assert before.items() <= content(here).items() and old.name == first.name in complete
        new = publish_release(bundle.path, here)
        assert set(open_store(here).releases()) == {old.name, new.name}
        manifest = open_store(here).manifest(new.name)
        assert manifest == new.manifest
        if not died:
            break
        # Only the last write, the manifest, makes it a release.
        assert (complete == {old.name}) == (writes <= len(new.manifest["files"]))
        writes += 1
    assert writes == len(new.manifest["files"]) + 2


def test_what_differs_in_a_half_written_release_is_replaced_and_strays_go(bundle: Bundle, root: str) -> None:
    release = publish_release(bundle.path, root)
    store = open_store(root)
    assert isinstance(store, S3Store)
    good = content(root)
    start = store._key(release.name)
    store.client.delete_object(Bucket=BUCKET, Key=f"{start}/{contract.RELEASE_MANIFEST}")
    for key in (f"{start}/{contract.ENSEMBLE}/config.pbtxt", f"{start}/stray"):
        store.client.put_object(Bucket=BUCKET, Key=key, Body=b"half")
    assert store.releases() == {} and store.manifest(release.name) is None
    publish_release(bundle.path, root)
    assert {key: tag for key, (tag, _) in content(root).items()} == {key: tag for key, (tag, _) in good.items()}


@pytest.mark.parametrize("harm", ["changed", "missing", "added"])
def test_a_changed_release_is_refused_and_named(bundle: Bundle, root: str, harm: str) -> None:
    release = publish_release(bundle.path, root)
    store = open_store(root)
    assert isinstance(store, S3Store)
    key = f"{store._key(release.name)}/{contract.ENSEMBLE}/{'extra' if harm == 'added' else 'config.pbtxt'}"
    if harm == "missing":
        store.client.delete_object(Bucket=BUCKET, Key=key)
    else:
        body = store._read(key)
        store.client.put_object(Bucket=BUCKET, Key=key, Body=(body[:-1] + b"#") if body else b"x")
    with pytest.raises(BundleError, match=f"{Path(key).name}: was changed"):
        publish_release(bundle.path, root)


def test_old_releases_are_pruned_manifest_first(bundle: Bundle, root: str, tmp_path: Path) -> None:
    names = []
    for threshold in (0.2, 0.3, 0.6):
        names.append(publish_release(tiny_bundle(tmp_path / f"{threshold}", threshold=threshold).path, root).name)
        time.sleep(1.1)  # A store's times are whole seconds.
    store = open_store(root)
    assert isinstance(store, S3Store)
    deleted: list[str] = []
    client = store.client

    class Watched:
        def __getattr__(self, name: str) -> Any:
            if name == "delete_object":
                return lambda **arguments: (deleted.append(arguments["Key"]), client.delete_object(**arguments))[1]
            return getattr(client, name)

    store.client = Watched()
    assert prune(store, 1, protected={names[0]}) == [names[1]]
    assert deleted[0].endswith(contract.RELEASE_MANIFEST)
    assert set(store.releases()) == {names[0], names[2]} and store._list(store._key(names[1])) == {}


def test_what_the_store_refuses_is_explained(bundle: Bundle, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingPrerequisite, match="create the bucket first"):
        publish_release(bundle.path, "s3://no-such-bucket/x")
    with pytest.raises(UsageError, match="a folder or to s3://bucket/prefix"):
        publish_release(bundle.path, "gs://models/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(MissingPrerequisite, match=r"check AWS_ACCESS_KEY_ID|these credentials need"):
        publish_release(bundle.path, root)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(MissingPrerequisite, match="no credentials"):
        publish_release(bundle.path, root)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ServerUnavailable, match="check AWS_ENDPOINT_URL"):
        publish_release(bundle.path, root)


def test_a_bucket_is_tried_before_it_is_needed(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(root)
    assert isinstance(store, S3Store)
    store.require_writable()
    assert content(root) == {}, "what was written to try has to be gone"
    with pytest.raises(MissingPrerequisite, match=r"no-such-bucket.*create the bucket first"):
        S3Store("no-such-bucket", "").require_writable()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(MissingPrerequisite, match=BUCKET):
        S3Store(BUCKET, "").require_writable()
