"""The rows of servers: what a client says where one is down, dies, answers garbage, or finds its port taken."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.cli.demo import free_ports
from pneumonia.errors import ServerUnavailable
from pneumonia.inference.predictor import open_predictor
from tests.bundles import serving
from tests.faults.children import begin, pneumoctl
from tests.faults.rows import SERVERS, Row, jpeg, named
from tests.stub_servers import grpc_stub, http_stub


def answer(**changes: list[Any]) -> bytes:
    """An answer to one image as our server gives it in JSON, with other values or, for None, without the output."""
    values = {"prediction": ["NORMAL"], "confidence": [0.9], "probability": [0.1], "threshold": [0.4],
              "uncertain": [False], "model_id": ["m@1"], **changes}  # fmt: skip
    listed = [
        {"name": name, "datatype": contract.ENSEMBLE_OUTPUTS[name], "shape": [len(data), 1], "data": data}
        for name, data in values.items()
        if data
    ]
    return json.dumps({"model_name": contract.ENSEMBLE, "model_version": "1", "outputs": listed}).encode()


GARBAGE = {
    "answering what is not JSON": b"<html>Welcome to the hospital</html>",
    "answering with other outputs": answer(prediction=[]),
    "answering a label that is none": answer(prediction=["HEALTHY"]),
    "answering NaN": answer(probability=[float("nan")]),
    "answering two images where one was sent": answer(
        prediction=["NORMAL"] * 2,
        confidence=[0.9] * 2,
        probability=[0.1] * 2,
        threshold=[0.4] * 2,
        uncertain=[False] * 2,
        model_id=["m@1"] * 2,
    ),
    "ending its answer early": answer(),
}


@contextlib.contextmanager
def brought(row: Row) -> Iterator[tuple[str, str]]:
    """Address and protocol of the server of a row."""
    if row.name == "down":
        yield f"127.0.0.1:{free_ports(1)[0]}", "http"
    elif row.name == "speaking something else than gRPC":
        with http_stub(lambda request: (200, b"")) as address:
            yield address, "grpc"
    elif row.name == "answering gRPC with garbage":
        with grpc_stub(lambda request, context: b"\xff\xff garbage") as address:
            yield address, "grpc"
    else:
        body = GARBAGE[row.name]
        with http_stub(lambda request: (200, body), more=100 if "early" in row.name else 0) as address:
            yield address, "http"


asked = pytest.mark.parametrize("row", [r for r in SERVERS if r.name not in ("dying during a request", "port taken")],
                                ids=str)  # fmt: skip


@asked
def test_a_bad_server_in_the_library(row: Row) -> None:
    with brought(row) as (address, protocol), pytest.raises(ServerUnavailable) as caught:
        open_predictor("triton", url=address, protocol=protocol, timeout_s=10).predict([jpeg()])
    assert row.words in str(caught.value)
    assert address in str(caught.value)
    assert caught.value.exit_code == row.code


@asked
def test_a_bad_server_on_the_command_line(row: Row, tmp_path: Path) -> None:
    (tmp_path / "x.jpeg").write_bytes(jpeg())
    with brought(row) as (address, protocol):
        done = pneumoctl(tmp_path, "infer", "x.jpeg", "--mode=triton", f"--url={address}", f"--protocol={protocol}")
    done.fails(row.code, row.words)
    assert len(done.err.splitlines()) == 1


def test_a_sound_answer_of_the_same_server_is_taken() -> None:
    """So that the rows above are refused for what they say they are."""
    body = answer()
    with http_stub(lambda request: (200, body)) as address:
        (given,) = open_predictor("triton", url=address).predict([jpeg()])
    assert (given.label, given.confidence, given.model_id) == ("NORMAL", pytest.approx(0.9), "m@1")


def test_the_server_dies_during_a_request(release: Path, tmp_path: Path) -> None:
    row = named("dying during a request")
    (tmp_path / "x.jpeg").write_bytes(jpeg())
    with serving(release) as server:
        assert server.process is not None
        # Stopped, it takes requests and cannot have answered them when it dies.
        server.process.send_signal(signal.SIGSTOP)
        asked = {
            protocol: begin(tmp_path, "infer", "x.jpeg", "--mode=triton", f"--url={server.address(protocol)}",
                            f"--protocol={protocol}", "--timeout=60")
            for protocol in contract.PROTOCOLS
        }  # fmt: skip
        wait_until(lambda: all(waiting(server.ports[protocol]) for protocol in asked))
        assert all(one.process.is_alive() for one in asked.values())
        server.process.send_signal(signal.SIGKILL)
        asked["http"].wait().fails(row.code, row.words)
        asked["grpc"].wait().fails(row.code, server.address("grpc"))


def waiting(port: int) -> int:
    """Connections to a port of this machine on which something has arrived that nobody has read."""
    found = 0
    # gRPC listens on the IPv6 side, for IPv4 addresses too.
    lines = [line for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    for fields in map(str.split, lines):
        if fields[1].endswith(f":{port:04X}") and fields[3] == "01" and int(fields[4].split(":")[1], 16) > 0:
            found += 1
    return found


def wait_until(condition: Callable[[], bool], within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_port_that_is_taken(bundle: Bundle, tmp_path: Path) -> None:
    row = named("port taken")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        words = ["serve", "--bundle", bundle.path, "--http-port", port]
        pneumoctl(tmp_path, *words, environment={"TMPDIR": os.fspath(tmp_path)}).fails(row.code, row.words)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".streams")] == []
