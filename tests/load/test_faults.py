"""A server that is killed under load; clients that are slow, silent or gone: nothing is lost, nobody else waits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.inference.predictor import open_predictor
from pneumonia.triton.server import TritonServer
from tests.bundles import HAS_SERVER, xray
from tests.cli.test_serve import child_of, first_line, options, serve
from tests.load.conftest import INFER, SCALE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300 * max(1.0, SCALE)),
    pytest.mark.skipif(not HAS_SERVER, reason="the server's wheel is for Linux x86-64"),
]
SILENT = 300


@pytest.mark.parametrize("protocol", contract.PROTOCOLS)
def test_a_server_killed_under_load_loses_no_request(bundle: Bundle, protocol: str) -> None:
    images = [xray(seed, (200, 200)) for seed in range(40)]
    expected = open_predictor("onnx", bundle.path).predict(images)
    rounds, kills = max(2, int(8 * SCALE)), 2
    with serve(*options(bundle=bundle.path)) as process:
        ready = first_line(process)
        url = ready[protocol].removeprefix("http://")
        done = threading.Event()

        def client(number: int) -> int:
            predictor = open_predictor("triton", url=url, protocol=protocol, timeout_s=10, retry_for_s=60)
            asked = 0
            # It goes on until the last kill is behind it, so that every one of them meets requests.
            while asked < rounds * len(images) or not done.is_set():
                at = (asked + number) % len(images)
                (answer,) = predictor.predict([images[at]])
                assert (answer.label, answer.model_id) == (expected[at].label, bundle.model_id)
                assert answer.probability == pytest.approx(expected[at].probability, abs=1e-5)
                asked += 1
            return asked

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client, number) for number in range(4)]
            for _ in range(kills):
                time.sleep(1)
                killed = child_of(process)
                os.kill(int(killed), signal.SIGKILL)
                wait_for_another(process, killed, ready["http"])
            done.set()
            asked = [each.result(timeout=200) for each in clients]
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    # Of the server's end it may notice that of the model's process first, and says so then.
    assert error.count("; starting it again") == kills
    print(f"{sum(asked)} requests over {protocol}, {kills} kills, none lost")


def wait_for_another(process: subprocess.Popen[str], killed: str, url: str) -> None:
    """Until `pneumoctl serve` has another server that answers."""
    host, port = url.removeprefix("http://").split(":")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            with socket.create_connection((host, int(port)), timeout=1) as connection:
                connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n")
                if b" 200 " in connection.recv(64) and child_of(process) != killed:
                    return
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    pytest.fail("no other server came up")


@pytest.fixture
def listener(server: TritonServer) -> Iterator[list[socket.socket]]:
    """Connections to the server, closed at the end."""
    connections: list[socket.socket] = []
    yield connections
    for connection in connections:
        connection.close()


def connect(server: TritonServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.ports["http"]), timeout=20)


def open_files(server: TritonServer) -> int:
    assert server.process is not None
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def head(length: int) -> bytes:
    return (
        f"POST {INFER} HTTP/1.1\r\nHost: a\r\nInference-Header-Content-Length: 0\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_slow_and_silent_connections_keep_nobody_waiting(server: TritonServer, listener: list[socket.socket]) -> None:
    image = xray(2, (200, 200))
    predictor = open_predictor("triton", url=server.address("http"), timeout_s=10)
    expected = predictor.predict([image])
    before = open_files(server)
    for number in range(SILENT):
        listener.append(connect(server))
        # Nothing at all, half a header, half a body.
        listener[-1].sendall([b"", head(len(image))[:40], head(len(image)) + image[: len(image) // 2]][number % 3])
    began = time.monotonic()
    assert [predictor.predict([image]) for _ in range(20)] == [expected] * 20
    assert time.monotonic() - began < 10
    # One that sends a little at a time gets its answer all the same.
    slow = connect(server)
    listener.append(slow)
    message = head(len(image)) + image
    for start in range(0, len(message), 1 + len(message) // 40):
        slow.sendall(message[start : start + 1 + len(message) // 40])
        time.sleep(0.02)
    assert b" 200 " in slow.recv(64)
    for connection in listener:
        connection.close()
    end = time.monotonic() + 20
    while open_files(server) > before + 2 and time.monotonic() < end:
        time.sleep(0.1)
    assert open_files(server) <= before + 2, "connections that their clients closed stay open"


def test_half_closed_connections_are_let_go(server: TritonServer, listener: list[socket.socket]) -> None:
    image = xray(2, (200, 200))
    before = open_files(server)
    for number in range(60):
        connection = connect(server)
        listener.append(connection)
        connection.sendall([head(len(image)) + image, head(len(image)) + image[:100], b"", b"GET"][number % 4])
        connection.shutdown(socket.SHUT_WR)
    for number, connection in enumerate(listener):
        try:
            answer = connection.recv(65536)
        except ConnectionError:
            answer = b""
        # Either the answer to a whole request, or the end; never silence.
        assert answer == b"" or (number % 4 == 0 and b" 200 " in answer) or b" 400 " in answer
    for connection in listener:
        connection.close()
    end = time.monotonic() + 20
    while open_files(server) > before + 2 and time.monotonic() < end:
        time.sleep(0.1)
    assert open_files(server) <= before + 2
    assert len(open_predictor("triton", url=server.address("http")).predict([image])) == 1


def test_clients_that_leave_before_the_answer_cost_nobody_else_one(server: TritonServer) -> None:
    image, large = xray(2, (200, 200)), xray(3, (1600, 1600))
    for _ in range(30):
        with connect(server) as connection:
            connection.sendall(head(len(large)) + large)
    (answer,) = open_predictor("triton", url=server.address("http"), timeout_s=20).predict([image])
    assert answer.label in contract.LABELS


def test_many_chunks_and_deep_nesting_do_not_end_the_server(server: TritonServer) -> None:
    # With Linux's usual stack of 8 MiB the first of these ends Triton 2.51.
    start = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    nested = b'{"inputs":' + b"[" * 1_000_000
    length = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(nested)}\r\n\r\n".encode()
    assert server.process is not None
    for message in (start + b"1\r\nA\r\n" * 1_000_000 + b"0\r\n\r\n", length + nested):
        with connect(server) as connection:
            connection.settimeout(60)
            connection.sendall(message)
            assert b" 500 " in connection.recv(64)
        assert server.process.poll() is None
