"""Tools of the load and fault tests: an asynchronous client without retries, and what the server's processes use.

PNEUMONIA_LOAD_SCALE multiplies requests and durations: .1 for a quick look, 10 for an hour. On two idle cores the
default takes about five minutes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from pneumonia import contract
from pneumonia.triton.server import TritonServer

SCALE = float(os.environ.get("PNEUMONIA_LOAD_SCALE", "1"))
INFER = f"/v2/models/{contract.ENSEMBLE}/infer"
RAW = {"Inference-Header-Content-Length": "0"}


@dataclass(frozen=True)
class Answer:
    """status: HTTP's, 0 where the connection failed. seconds: from sending to the whole answer."""

    status: int
    seconds: float
    text: bytes = b""


def session() -> aiohttp.ClientSession:
    """A client that opens as many connections as are asked for."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60), trust_env=False
    )


async def ask(client: aiohttp.ClientSession, server: TritonServer, image: bytes) -> Answer:
    """One raw request."""
    began = time.monotonic()
    try:
        async with client.post(server.http_url + INFER, data=image, headers=RAW) as response:
            text = await response.read()
            return Answer(response.status, time.monotonic() - began, text)
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
        return Answer(0, time.monotonic() - began, repr(error).encode())


async def in_turns(server: TritonServer, images: Sequence[bytes], count: int, clients: int) -> list[Answer]:
    """`count` requests from `clients` clients, each of which waits for its answer before it asks again."""
    left = iter(range(count))
    answers: list[Answer] = []
    async with session() as http:

        async def one() -> None:
            for number in left:
                answers.append(await ask(http, server, images[number % len(images)]))

        await asyncio.gather(*(one() for _ in range(clients)))
    return answers


async def at_rate(server: TritonServer, images: Sequence[bytes], per_s: float, seconds: float) -> list[Answer]:
    """`per_s` requests a second, whether or not the ones before were answered."""
    tasks = []
    async with session() as http:
        began = time.monotonic()
        for number in range(int(per_s * seconds)):
            await asyncio.sleep(max(0.0, began + number / per_s - time.monotonic()))
            tasks.append(asyncio.create_task(ask(http, server, images[number % len(images)])))
        return list(await asyncio.gather(*tasks))


def processes(server: TritonServer) -> list[int]:
    """The server and its stubs: all processes of its session."""
    assert server.process is not None
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == server.process.pid and fields[0] != "Z":
            found.append(int(folder.name))
    return sorted(found)


def memory_bytes(server: TritonServer) -> int:
    """What the server and its stubs hold: heap and shared memory, which counts once.

    Pages of files are left out: they are the kernel's to take back, and others that map the same libraries come and go.
    """
    total = 0
    for process in processes(server):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
        total += 1024 * (sizes["Pss_Anon"] + sizes["Pss_Shmem"])
    return total
