"""Bulk scoring against servers that are busy, that fail at one image, or that fail at all."""

from __future__ import annotations

import contextlib
import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumonia import contract
from pneumonia.cli.demo import free_ports
from pneumonia.errors import ServerUnavailable
from pneumonia.inference.inputs import Inputs
from pneumonia.inference.predictor import open_predictor
from pneumonia.inference.score import Scored, from_server, score
from tests.bundles import xray
from tests.faults.test_bad_servers import answer
from tests.stub_servers import grpc_stub, http_stub

both = pytest.mark.parametrize("protocol", contract.PROTOCOLS)
Status = Callable[[bytes], int]
"""A request's bytes -> 200, or the status to answer it with."""


@contextlib.contextmanager
def http_server(status: Status) -> Iterator[str]:
    """host:port of a server that answers every image with NORMAL, over HTTP."""

    def respond(request: bytes) -> tuple[int, bytes]:
        code = status(request)
        return code, answer() if code == 200 else b'{"error": "such is the stub"}'

    with http_stub(respond) as address:
        yield address


@contextlib.contextmanager
def grpc_server(status: Status) -> Iterator[str]:
    """The same over gRPC."""
    import grpc
    from tritonclient.grpc import service_pb2

    codes = {503: grpc.StatusCode.UNAVAILABLE, 500: grpc.StatusCode.INTERNAL}
    sound = service_pb2.ModelInferResponse(model_name=contract.ENSEMBLE)
    for name, value in {"prediction": b"NORMAL", "confidence": 0.9, "probability": 0.1, "threshold": 0.4,
                        "model_id": b"m@1"}.items():  # fmt: skip
        sound.outputs.add(name=name, datatype=contract.ENSEMBLE_OUTPUTS[name], shape=[1, 1])
        coded = len(value).to_bytes(4, "little") + value if isinstance(value, bytes) else np.float32(value).tobytes()
        sound.raw_output_contents.append(coded)

    def infer(request: bytes, context: Any) -> bytes:
        if (code := status(request)) != 200:
            context.abort(codes[code], "such is the stub")
        return bytes(sound.SerializeToString())

    with grpc_stub(infer) as address:
        yield address


SERVERS = {"http": http_server, "grpc": grpc_server}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images."""
    root = tmp_path / "in"
    root.mkdir()
    for seed in range(6):
        (root / f"{seed}.jpeg").write_bytes(xray(seed, (64, 64)))
    return root


def run(images: Path, url: str, protocol: str, concurrency: int = 2, retry_for_s: float = 60) -> Scored:
    answerer = from_server(
        lambda: open_predictor("triton", url=url, protocol=protocol, timeout_s=10), concurrency, retry_for_s
    )
    return score(Inputs([str(images)]), images.parent / "out.csv", answerer, {})


def rows(images: Path) -> list[dict[str, str]]:
    with (images.parent / "out.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@both
def test_a_server_that_is_busy_from_the_first_request_is_asked_again(
    images: Path, protocol: str, capfd: pytest.CaptureFixture[str]
) -> None:
    refusals = iter(range(5))
    with SERVERS[protocol](lambda request: 200 if next(refusals, None) is None else 503) as url:
        done = run(images, url, protocol)
    assert (done.rows, done.errors) == (6, 0)
    assert "trying again for 60 s" in capfd.readouterr().err
    assert [row["prediction"] for row in rows(images)] == ["NORMAL"] * 6


@both
def test_a_server_that_stays_busy_ends_the_run(images: Path, protocol: str) -> None:
    with SERVERS[protocol](lambda request: 503) as url, pytest.raises(ServerUnavailable, match="such is the stub"):
        run(images, url, protocol, retry_for_s=0.5)
    assert not (images.parent / "out.csv").exists()


@both
def test_where_no_server_is_the_run_ends_at_once(images: Path, protocol: str) -> None:
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match="no server at"):
        run(images, f"127.0.0.1:{free_ports(1)[0]}", protocol)
    assert time.monotonic() - began < 20


@both
@pytest.mark.parametrize(("poison", "concurrency"), [(0, 1), (3, 4)])
def test_an_image_at_which_the_server_fails_is_a_row_with_the_error(
    images: Path, protocol: str, poison: int, concurrency: int
) -> None:
    bad = (images / f"{poison}.jpeg").read_bytes()
    with SERVERS[protocol](lambda request: 500 if bad in request else 200) as url:
        done = run(images, url, protocol, concurrency)
    assert (done.rows, done.errors) == (6, 1)
    found = rows(images)
    assert [row["prediction"] for row in found] == ["" if n == poison else "NORMAL" for n in range(6)]
    assert "fails at this image" in found[poison]["error"]
    assert "such is the stub" in found[poison]["error"]


@both
@pytest.mark.parametrize("answered", [0, 2])
def test_a_server_that_fails_at_everything_is_no_fault_of_the_images(
    images: Path, protocol: str, answered: int
) -> None:
    good = iter(range(answered))
    with (
        SERVERS[protocol](lambda request: 500 if next(good, None) is None else 200) as url,
        pytest.raises(ServerUnavailable, match="such is the stub"),
    ):
        run(images, url, protocol, concurrency=1, retry_for_s=2)
    journal = (images.parent / "out.csv.partial").read_text().splitlines()
    assert len(journal) == 1 + answered
    assert not [line for line in journal[1:] if '"error": null' not in line]


def test_a_server_that_fails_for_a_moment_costs_no_image(images: Path) -> None:
    failures = iter(range(3))
    with http_server(lambda request: 200 if next(failures, None) is None else 500) as url:
        done = run(images, url, "http", concurrency=1)
    assert (done.rows, done.errors) == (6, 0)
