"""The client of a server: what it says where there is none, where it hangs, and where it refuses."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.cli.demo import free_ports
from pneumonia.errors import ImageError, ServerUnavailable, UsageError
from pneumonia.inference.predictor import open_predictor
from pneumonia.triton.server import TritonServer
from tests.bundles import HAS_SERVER, xray
from tests.stub_servers import http_stub

both = pytest.mark.parametrize("protocol", contract.PROTOCOLS)


@pytest.fixture
def silent() -> Iterator[str]:
    """host:port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def refusing(request: pytest.FixtureRequest) -> Iterator[str]:
    """host:port of an HTTP server that answers every request with the status and text of the parameter."""
    with http_stub(lambda body: request.param) as address:
        yield address


@both
def test_more_images_than_one_request_may_carry_are_answered_in_order(server: TritonServer, protocol: str) -> None:
    images = [xray(seed, (64, 64)) for seed in range(2 * contract.MAX_BATCH_SIZE + 3)]
    predictor = open_predictor("triton", url=server.address(protocol), protocol=protocol)
    answers = predictor.predict(images)
    assert len(answers) == len(images)
    for position in (0, 31, 32, 66):
        assert predictor.predict([images[position]]) == [answers[position]]
    assert predictor.predict([]) == []


@both
def test_a_scheme_before_the_address_is_understood(server: TritonServer, protocol: str) -> None:
    url = f"{protocol}://{server.address(protocol)}/"
    assert len(open_predictor("triton", url=url, protocol=protocol).predict([xray(1)])) == 1


@both
def test_a_bad_image_is_the_servers_own_message(server: TritonServer, protocol: str) -> None:
    predictor = open_predictor("triton", url=server.address(protocol), protocol=protocol)
    with pytest.raises(ImageError, match=r"^image 1: not an image this reads"):
        predictor.predict([xray(1), b"hello"])


@both
def test_a_proxy_of_the_environment_is_not_asked(
    server: TritonServer, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_ports(1)[0]}")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    predictor = open_predictor("triton", url=server.address(protocol), protocol=protocol)
    assert len(predictor.predict([xray(1)])) == 1


@both
def test_without_a_server_the_command_that_starts_one_is_named(protocol: str) -> None:
    (port,) = free_ports(1)
    predictor = open_predictor("triton", url=f"127.0.0.1:{port}", protocol=protocol, timeout_s=5)
    with pytest.raises(ServerUnavailable, match=rf"no server at 127\.0\.0\.1:{port} .*`pneumoctl serve`"):
        predictor.predict([xray(1)])


@both
def test_a_host_that_does_not_exist_is_no_server(protocol: str) -> None:
    predictor = open_predictor("triton", url="nosuch.invalid:1", protocol=protocol, timeout_s=5)
    with pytest.raises(ServerUnavailable, match=r"no server at nosuch\.invalid:1 "):
        predictor.predict([xray(1)])


@both
def test_a_server_that_hangs_is_given_up(silent: str, protocol: str) -> None:
    predictor = open_predictor("triton", url=silent, protocol=protocol, timeout_s=1)
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match=r"no answer from .* within 1 s.*--timeout"):
        predictor.predict([xray(1)])
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("refusing", "message"),
    [
        ((503, b'{"error": "Exceeds maximum queue size"}'), "did not answer .*503: Exceeds maximum queue size.*later"),
        ((500, b'{"error": "broken"}'), "did not answer .*500: broken.*log"),
        ((404, b'{"error": "Request for unknown model"}'), "does not serve pneumonia_detection .*--url"),
        ((502, b"<html>bad gateway</html>"), "did not answer .*502: "),
    ],
    indirect=["refusing"],
)
def test_a_refusal_says_what_to_do(refusing: str, message: str) -> None:
    with pytest.raises(ServerUnavailable, match=message):
        open_predictor("triton", url=refusing).predict([xray(1)])


@pytest.mark.parametrize("refusing", [(413, b"<html>Request Entity Too Large</html>")], indirect=True)
def test_an_image_that_a_proxy_finds_too_large_is_that_images_fault(refusing: str) -> None:
    with pytest.raises(ImageError, match=r"no request as large as this.*client_max_body_size"):
        open_predictor("triton", url=refusing).predict([xray(1)])


@pytest.mark.parametrize("refusing", [(401, b'{"error": "no key"}'), (403, b'{"error": "no"}')], indirect=True)
def test_a_server_that_wants_a_key_is_not_asked_again(refusing: str) -> None:
    with pytest.raises(ServerUnavailable, match=r"lets nobody in without a key") as caught:
        open_predictor("triton", url=refusing).predict([xray(1)])
    assert not caught.value.transient


@pytest.mark.parametrize(
    "refusing", [(500, b'{"error": "Failed to increase the shared memory pool size for key"}')], indirect=True
)
def test_a_lack_of_room_is_no_fault_of_the_image(refusing: str) -> None:
    with pytest.raises(ServerUnavailable, match=r"shared memory pool") as caught:
        open_predictor("triton", url=refusing).predict([xray(1)])
    assert (caught.value.busy, caught.value.failed) == (True, False)


@pytest.mark.parametrize("url", ["localhost", "localhost:", "localhost:port", "ftp://localhost:1", "grpc://a:1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"expected host:port.*http"):
        open_predictor("triton", url=url)


@pytest.mark.skipif(not HAS_SERVER, reason="the server's wheel is for Linux x86-64")
@both
def test_a_server_that_comes_late_is_waited_for(release: Path, protocol: str) -> None:
    ports = free_ports(3)
    url = f"127.0.0.1:{ports[contract.PROTOCOLS.index(protocol)]}"
    predictor = open_predictor("triton", url=url, protocol=protocol, timeout_s=10, retry_for_s=60)
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(predictor.predict, [xray(1)])
        time.sleep(0.5)
        with TritonServer(release, *ports):
            assert len(answers.result(timeout=60)) == 1


def test_trying_again_comes_to_an_end() -> None:
    (port,) = free_ports(1)
    predictor = open_predictor("triton", url=f"127.0.0.1:{port}", retry_for_s=1)
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match="no server at"):
        predictor.predict([xray(1)])
    assert 0.3 < time.monotonic() - began < 3


@pytest.mark.parametrize("refusing", [(404, b'{"error": "Request for unknown model"}')], indirect=True)
def test_what_time_does_not_mend_is_not_tried_again(refusing: str) -> None:
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match="does not serve"):
        open_predictor("triton", url=refusing, retry_for_s=20).predict([xray(1)])
    assert time.monotonic() - began < 5
