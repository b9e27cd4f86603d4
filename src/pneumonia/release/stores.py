"""Where releases lie: a folder (a mounted volume is one), or a bucket of an S3-compatible store."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from pneumonia import contract
from pneumonia.errors import BundleError, DependencyMissing, MissingPrerequisite, ServerUnavailable, UsageError
from pneumonia.files import NO_ROOM, cannot_write, usual_mode
from pneumonia.release_manifest import release_files, verify_release

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
_ABANDONED_AFTER_S = 24 * 3600
"""A publication takes minutes; what it left behind a day ago belongs to one that was killed."""
_BUILDING = ".building."
PROBE = ".pneumonia-probe-"
"""Begins the name of an object that is written to see whether one can be, and is gone again at once."""


class Store(Protocol):
    """Holds releases/<name>/... ; a release without its manifest is half written and counts as absent."""

    def uri(self, name: str) -> str:
        """What a server is given to find the release."""
        ...

    def releases(self) -> dict[str, float]:
        """Complete releases by name, with the time of their manifest in seconds since 1970."""
        ...

    def manifest(self, name: str) -> dict[str, Any] | None:
        """What release.json says, or None where the release is absent or half written."""
        ...

    def building(self) -> AbstractContextManager[Path]:
        """An empty folder to build a release in, gone at the end."""
        ...

    def write(self, name: str, built: Path) -> None:
        """Store the folder `built`, which `building` gave, as release `name`, its manifest last.

        A complete one is compared and left alone.
        Raises BundleError where it holds something else.
        """
        ...

    def remove(self, name: str) -> None:
        """Delete the release, its manifest first, so that a removal cut short leaves none that looks complete."""
        ...


def open_store(root: str | Path) -> Store:
    """The store at a folder or s3://bucket[/prefix].

    S3: endpoint and region from AWS_ENDPOINT_URL and AWS_REGION, credentials from the environment, a profile or the
    machine's role, as boto3 finds them; never from here. Raises UsageError for another scheme.
    """
    scheme, separator, rest = str(root).partition("://")
    if not separator:
        return FolderStore(Path(root))
    if scheme != "s3" or not rest.strip("/"):
        raise UsageError(
            f"{root}: releases go to a folder or to s3://bucket/prefix; for a volume give the folder where it is "
            "mounted"
        )
    bucket, _, prefix = rest.partition("/")
    return S3Store(bucket, prefix.strip("/"))


class FolderStore:
    """<root>/releases/<name>/, written beside its place and renamed: a release is there whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.folder = root / contract.RELEASES_DIR

    def uri(self, name: str) -> str:
        """The release's folder."""
        return str(self.folder / name)

    def releases(self) -> dict[str, float]:
        """See `Store`."""
        found = self.folder.glob(f"[!.]*/{contract.RELEASE_MANIFEST}")
        return {path.parent.name: path.stat().st_mtime for path in found}

    def manifest(self, name: str) -> dict[str, Any] | None:
        """See `Store`."""
        try:
            return _parse((self.folder / name / contract.RELEASE_MANIFEST).read_bytes(), self.uri(name))
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextlib.contextmanager
    def building(self) -> Iterator[Path]:
        """See `Store`. It lies on the store's own disk, so that it can be renamed into place."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            temporary = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self.folder))
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        try:
            # mkdtemp makes private folders; a server under another user may have to read the release.
            os.chmod(temporary, usual_mode(directory=True))
            yield temporary
        except OSError as error:
            if error.errno in NO_ROOM:
                raise cannot_write(self.folder, error) from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write(self, name: str, built: Path) -> None:
        """See `Store`. `built` is moved, not copied."""
        target = self.folder / name
        if (target / contract.RELEASE_MANIFEST).exists():
            verify_release(target)
            return
        if target.exists():
            # Half written by other means than this class, such as a copy that was cut short.
            os.replace(target, Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self.folder)) / "half")
        try:
            os.replace(built, target)
        except OSError:
            # Someone else published the same release meanwhile, which is as good.
            if not (target / contract.RELEASE_MANIFEST).exists():
                raise
            verify_release(target)

    def remove(self, name: str) -> None:
        """See `Store`."""
        (self.folder / name / contract.RELEASE_MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.folder / name)

    def _sweep(self) -> None:
        """Remove what killed publications left behind."""
        for left in self.folder.glob(f"{_BUILDING}*"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED_AFTER_S:
                    shutil.rmtree(left, ignore_errors=True)


class S3Store:
    """s3://<bucket>/<prefix>/releases/<name>/... client: a boto3 S3 client, for tests and unusual set-ups."""

    def __init__(self, bucket: str, prefix: str, client: Any = None) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.client = client if client is not None else _client()

    def uri(self, name: str) -> str:
        """The release's prefix."""
        return f"s3://{self.bucket}/{self._key(name)}"

    def releases(self) -> dict[str, float]:
        """See `Store`."""
        start = self._key("")
        found = {}
        for key, entry in self._list(start).items():
            name, _, file = key.removeprefix(start).partition("/")
            if file == contract.RELEASE_MANIFEST:
                found[name] = entry["LastModified"].timestamp()
        return found

    def manifest(self, name: str) -> dict[str, Any] | None:
        """See `Store`."""
        raw = self._read(f"{self._key(name)}/{contract.RELEASE_MANIFEST}")
        return None if raw is None else _parse(raw, self.uri(name))

    @contextlib.contextmanager
    def building(self) -> Iterator[Path]:
        """See `Store`."""
        with tempfile.TemporaryDirectory(prefix="pneumonia-release.") as temporary:
            yield Path(temporary)

    def write(self, name: str, built: Path) -> None:
        """See `Store`."""
        start = f"{self._key(name)}/"
        present = self._list(start)
        wanted = {start + file: built / file for file in release_files(built)}
        differing = {key: path for key, path in wanted.items() if not self._same(present.get(key), path)}
        strays = sorted(set(present) - set(wanted) - {start + contract.RELEASE_MANIFEST})
        manifest = built / contract.RELEASE_MANIFEST
        if (stored := self._read(start + contract.RELEASE_MANIFEST)) is not None:
            if changed := [
                *differing,
                *strays,
                *([] if stored == manifest.read_bytes() else [contract.RELEASE_MANIFEST]),
            ]:
                raise BundleError(
                    f"s3://{self.bucket}/{changed[0]}: was changed after the release was written; a release is "
                    f"immutable, remove {self.uri(name)} and publish the bundle again"
                )
            return
        with _explained(self.uri(name)):
            for key in strays:
                self.client.delete_object(Bucket=self.bucket, Key=key)
            for key, path in [*differing.items(), (start + contract.RELEASE_MANIFEST, manifest)]:
                with path.open("rb") as stream:
                    self.client.put_object(Bucket=self.bucket, Key=key, Body=stream)

    def require_writable(self) -> None:
        """Write a small object below the prefix and delete it again. Raises MissingPrerequisite where it cannot."""
        key = f"{self.prefix}{PROBE}{uuid.uuid4().hex}"
        with _explained(f"s3://{self.bucket}/{key}"):
            # Some servers make a bucket of a mistyped name.
            self.client.head_bucket(Bucket=self.bucket)
            self.client.put_object(Bucket=self.bucket, Key=key, Body=b"")
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def remove(self, name: str) -> None:
        """See `Store`."""
        start = f"{self._key(name)}/"
        manifest = start + contract.RELEASE_MANIFEST
        with _explained(self.uri(name)):
            self.client.delete_object(Bucket=self.bucket, Key=manifest)
            for key in sorted(set(self._list(start)) - {manifest}):
                self.client.delete_object(Bucket=self.bucket, Key=key)

    def _key(self, name: str) -> str:
        return f"{self.prefix}{contract.RELEASES_DIR}/{name}"

    def _list(self, start: str) -> dict[str, Any]:
        with _explained(f"s3://{self.bucket}/{start}"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start)
            return {entry["Key"]: entry for page in pages for entry in page.get("Contents", ())}

    def _same(self, entry: dict[str, Any] | None, path: Path) -> bool:
        """Whether an object holds a file's bytes."""
        if entry is None or entry["Size"] != path.stat().st_size:
            return False
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False)
        # The ETag is the MD5 of what one put_object wrote, except where the store encrypts: then look at the bytes.
        return entry["ETag"].strip('"') == digest.hexdigest() or self._read(entry["Key"]) == path.read_bytes()

    def _read(self, key: str) -> bytes | None:
        with _explained(f"s3://{self.bucket}/{key}"):
            try:
                return bytes(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read())
            except self.client.exceptions.NoSuchKey:
                return None


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads(raw))
    except (ValueError, TypeError) as error:
        raise BundleError(f"{where}: damaged manifest ({error}); remove the release and publish it again") from error


def _client() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise DependencyMissing(f"{error.name} is not installed; pip install 'pneumonia[s3]'") from error
    own_server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"max_attempts": 3, "mode": "standard"},
        # Servers other than Amazon's rarely have a host name a bucket, and some refuse newer checksums.
        s3={"addressing_style": "path"} if own_server else {},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    # A session of its own: boto3's shared one keeps the credentials that it saw first.
    return boto3.session.Session().client("s3", region_name=region, config=config)


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """The library's own errors for what boto3 raises."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise MissingPrerequisite(
            f"{where}: no credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine "
            "a role"
        ) from error
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code == "NoSuchKey":
            raise
        missing = "create the bucket first, or correct its name"
        rights = "these credentials need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket"
        # An answer to HEAD has no text, only its number.
        hint = {"NoSuchBucket": missing, "404": missing, "AccessDenied": rights, "403": rights}.get(
            code, "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and the clock of this machine"
        )
        raise MissingPrerequisite(f"{where}: the store refuses ({error}); {hint}") from error
    except BotoCoreError as error:
        raise ServerUnavailable(f"{where}: no answer from the store ({error}); check AWS_ENDPOINT_URL") from error
