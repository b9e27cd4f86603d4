"""Thousands of damaged requests, the same ones each time: the server's processes live on and answer as before."""

from __future__ import annotations

import gzip
import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpc_client

from pneumonia import contract
from pneumonia.inference.predictor import open_predictor
from pneumonia.triton.server import TritonServer
from tests.bundles import xray
from tests.load.conftest import INFER, SCALE, processes
from tests.triton.test_serving import as_json

HTTP_REQUESTS, GRPC_REQUESTS = int(3_000 * SCALE), int(1_500 * SCALE)
MODELS = (contract.ENSEMBLE,)
READ = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/metrics", "/",
        *(f"/v2/models/{m}{end}" for m in MODELS for end in ("", "/ready", "/config", "/stats"))]  # fmt: skip
WRITE = [INFER, *(f"/v2/models/{m}/{end}" for m in MODELS for end in ("infer", "generate", "generate_stream"))]
CLOSED = ["/v2/repository/index", "/v2/logging", "/v2/trace/setting", "/v2/systemsharedmemory/region/a/register",
          f"/v2/repository/models/{contract.ENSEMBLE}/unload"]  # fmt: skip
# Not 4294967296 or 9223372036854775807: a shape that announces more memory than the machine lends ends this Triton
# (docs/serving.md).
NUMBERS = [b"-1", b"0", b"1e308", b"18446744073709551616", b"16777216", b"null"]
METHODS = ["ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelConfig",
           "ModelStatistics", "RepositoryIndex", "SystemSharedMemoryRegister", "TraceSetting"]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 * max(1.0, SCALE))]


def bodies() -> list[tuple[bytes, dict[str, bytes]]]:
    """Sound requests and their headers, to be damaged."""
    image = xray(5, (64, 64))
    head = json.dumps({"inputs": [{"name": "image", "shape": [1, 1], "datatype": "BYTES",
                                   "parameters": {"binary_data_size": len(image) + 4}}]}).encode()  # fmt: skip
    binary = head + len(image).to_bytes(4, "little") + image
    logits = {"name": "logits", "shape": [2, 2], "datatype": "FP32", "data": [0.5, 1.0, -2.0, 3.0]}
    pixels = {"name": "pixel_values", "shape": [1, 3, 224, 224], "datatype": "FP32",
              "parameters": {"binary_data_size": 602112}}  # fmt: skip
    tensor_head = json.dumps({"inputs": [pixels]}).encode()
    raw = {"Inference-Header-Content-Length": b"0"}
    return [
        (image, raw),
        (as_json(image), {}),
        (as_json(image, b"", b"A" * 2000), {}),
        (binary, {"Inference-Header-Content-Length": str(len(head)).encode()}),
        (gzip.compress(as_json(image)), {"Content-Encoding": b"gzip"}),
        (json.dumps({"inputs": [logits], "outputs": [{"name": "prediction"}]}).encode(), {}),
        (tensor_head + bytes(602112), {"Inference-Header-Content-Length": str(len(tensor_head)).encode()}),
        (b"[" * 5000, {}),
        (b"", raw),
    ]


def damage(rng: random.Random, data: bytes) -> bytes:
    """One kind of damage, at a random place."""
    if not data:
        return rng.randbytes(rng.randrange(64))
    at = rng.randrange(len(data))
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + rng.randbytes(rng.randrange(1, 16)) + data[at + rng.randrange(16) :]
    if kind == 2:
        return data[:at] + data[at : at + 200] * rng.randrange(2, 20) + data[at:]
    if kind == 3:
        digits = [place for place, byte in enumerate(data[:4000]) if 48 <= byte <= 57] or [at]
        place = rng.choice(digits)
        return data[:place] + rng.choice(NUMBERS) + data[place + 1 :]
    if kind == 4:
        words = [b'"', b"{", b"}", b"[", b"]", b":", b",", b"\x00", b"\xff", b"BYTES", b"FP32", b"image"]
        return data.replace(rng.choice(words), rng.choice(words), rng.randrange(1, 4))
    return data


def http_request(rng: random.Random) -> bytes:
    """One damaged request as it goes over the wire."""
    body, headers = rng.choice(SOUND)
    body = damage(rng, body)
    headers = dict(headers)
    path = rng.choice(rng.choice([READ, WRITE, WRITE, [INFER], [INFER], CLOSED])).encode()
    method = b"GET" if path.decode() in READ else b"POST"
    if rng.random() < 0.1:
        method = rng.choice([b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"X" * 300])
    if rng.random() < 0.3:
        name = rng.choice(["Inference-Header-Content-Length", "Content-Encoding", "Content-Type", "Accept", "Host",
                           "Expect", "Connection", "Accept-Encoding", "X" * 5000])  # fmt: skip
        values = [b"gzip", b"deflate", b"x" * 9000, b"100-continue", b"\xff\xfe", str(len(body)).encode()]
        value = rng.choice([*NUMBERS, *values])
        headers[name] = value
    length = len(body) if rng.random() < 0.85 else rng.choice([0, len(body) // 2, len(body) + 10, -1, 2**40])
    if rng.random() < 0.1:
        headers["Transfer-Encoding"] = b"chunked"
        body = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 50]), body[i : i + 50]) for i in range(0, len(body), 50))
        body += rng.choice([b"0\r\n\r\n", b"", b"ffffffffffffffff\r\n"])
    else:
        headers["Content-Length"] = str(length).encode()
    path = damage(rng, path) if rng.random() < 0.1 else path
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: localhost" if "Host" not in headers else b""]
    lines += [name.encode() + b": " + value for name, value in headers.items()]
    return b"\r\n".join(line for line in lines if line) + b"\r\n\r\n" + body


SOUND = bodies()


def send(server: TritonServer, seed: int) -> int:
    """Send request number `seed`; the status of the answer, 0 where there was none."""
    rng = random.Random(seed)
    data = http_request(rng)
    port = server.ports["metrics" if b" /metrics" in data[:400] else "http"]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(data)
            # Where more was announced than was sent, the server waits for it.
            connection.settimeout(0.5)
            return int(connection.recv(64).split(b" ")[1])
        except (OSError, IndexError, ValueError):
            return 0


def test_damaged_http_requests(server: TritonServer) -> None:
    before = processes(server)
    sound = open_predictor("triton", url=server.address("http"))
    expected = sound.predict([xray(1)])
    counts: dict[int, int] = {}
    for start in range(0, HTTP_REQUESTS, 250):
        with ThreadPoolExecutor(16) as pool:
            for status in pool.map(lambda seed: send(server, seed), range(start, min(start + 250, HTTP_REQUESTS))):
                counts[status] = counts.get(status, 0) + 1
        assert sound.predict([xray(1)]) == expected, f"after the requests of seeds {start} to {start + 249}"
    print("answers by status:", dict(sorted(counts.items())))
    assert processes(server) == before
    assert counts[200] + counts[400] > 0.2 * HTTP_REQUESTS, "too few came as far as the models"


def test_damaged_grpc_messages(server: TritonServer) -> None:
    before = processes(server)
    expected = open_predictor("triton", url=server.address("http")).predict([xray(1)])
    tensor = grpc_client.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[xray(5, (64, 64))]], np.object_))
    request = grpc_client.service_pb2.ModelInferRequest(model_name=contract.ENSEMBLE, id="a")
    request.inputs.append(tensor._get_tensor())
    request.raw_input_contents.append(tensor._get_content())
    sound = request.SerializeToString()
    counts: dict[str, int] = {}
    asked = 0  # Messages that came as far as the models, which answered or refused their image.
    with grpc.insecure_channel(server.address("grpc"), options=[("grpc.enable_http_proxy", 0)]) as channel:
        for seed in range(GRPC_REQUESTS):
            rng = random.Random(seed)
            method = "ModelInfer" if rng.random() < 0.6 else rng.choice(METHODS)
            message = damage(rng, sound) if rng.random() < 0.9 else rng.randbytes(rng.randrange(300))
            try:
                channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(message, timeout=10)
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name  # type: ignore[attr-defined]
            counts[code] = counts.get(code, 0) + 1
            asked += method == "ModelInfer" and code in ("OK", "INVALID_ARGUMENT")
    print("answers by code:", counts, "to images:", asked)
    assert processes(server) == before
    assert asked > 0.1 * GRPC_REQUESTS, f"only {asked} came as far as the models"
    assert open_predictor("triton", url=server.address("http")).predict([xray(1)]) == expected
