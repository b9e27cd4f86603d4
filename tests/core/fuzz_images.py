"""Mutated JPEG and PNG files against the image reader: `python -m tests.core.fuzz_images COUNT SEED` prints the end."""

from __future__ import annotations

import base64
import io
import json
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from pneumonia.core.image import MAX_PIXELS, MIN_SIDE, decode_image, unwrap_base64
from pneumonia.errors import ImageError

Rng = np.random.Generator
PNG = b"\x89PNG\r\n\x1a\n"
ADDRESS_SPACE = 3 << 30
"""A safety net for the machine; what is asserted is how much was used."""


def seeds() -> list[bytes]:
    """Small images of every kind that is read, with remarks, profiles and EXIF."""
    gray = Image.fromarray(np.linspace(0, 255, 96 * 80).reshape(80, 96).astype(np.uint8))
    deep = Image.fromarray(np.linspace(0, 65535, 96 * 80).reshape(80, 96).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "chest, p.a."
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "a remark " * 9, zip=True)
    notes.add_itxt("Title", "another " * 9, zip=True)
    made: list[tuple[Image.Image, str, dict[str, object]]] = [
        (gray, "JPEG", {"exif": exif, "comment": b"remark"}),
        (gray.convert("RGB"), "JPEG", {"progressive": True, "icc_profile": bytes(200)}),
        (gray.convert("CMYK"), "JPEG", {}),
        (gray.convert("RGB"), "JPEG", {"subsampling": 2, "restart_marker_blocks": 1}),
        (gray, "PNG", {"pnginfo": notes, "dpi": (72, 72)}),
        (deep, "PNG", {}),
        (gray.convert("P"), "PNG", {"transparency": 3}),
        (gray.convert("RGBA"), "PNG", {"exif": exif, "icc_profile": bytes(200)}),
        (gray.convert("LA"), "PNG", {}),
        (gray.convert("1"), "PNG", {}),
    ]
    encoded = []
    for image, kind, options in made:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        encoded.append(stream.getvalue())
    return encoded


def flip(data: bytes, rng: Rng, known: list[bytes]) -> bytes:
    """One to seven flipped bits."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 8)):
        changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut(data: bytes, rng: Rng, known: list[bytes]) -> bytes:
    """The end is missing."""
    return data[: rng.integers(len(data))]


def splice(data: bytes, rng: Rng, known: list[bytes]) -> bytes:
    """The beginning of one file and the end of another."""
    other = known[rng.integers(len(known))]
    return data[: rng.integers(len(data))] + other[rng.integers(len(other)) :]


def header(data: bytes, rng: Rng, known: list[bytes]) -> bytes:
    """Other bytes among the first 64, or other sides where the file says them."""
    changed = bytearray(data)
    if rng.integers(2):
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(min(64, len(data)))] = rng.integers(256)
        return bytes(changed)
    sides = [int(2 ** rng.uniform(0, 16)) for _ in range(2)]
    if data.startswith(PNG):
        parts = chunks(data)
        parts[0] = (b"IHDR", struct.pack(">II", *sides) + parts[0][1][8:])
        return png(parts)
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    changed[frame + 5 : frame + 9] = struct.pack(">HH", *sides)
    return bytes(changed)


def chunk_edit(data: bytes, rng: Rng, known: list[bytes]) -> bytes:
    """PNG chunks changed, cut, doubled, renamed or lengthened, with checksums that fit; other files are spliced."""
    if not data.startswith(PNG):
        return splice(data, rng, known)
    parts = chunks(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(parts)))
        kind, body = parts[at]
        position = int(rng.integers(len(body) + 1))
        choice = rng.integers(5)
        if choice == 0:
            parts[at] = (kind, body[:position] + rng.bytes(1) + body[position + 1 :])
        elif choice == 1:
            parts[at] = (kind, body[:position])
        elif choice == 2:
            parts.insert(int(rng.integers(len(parts))), parts[at])
        elif choice == 3:
            parts[at] = (parts[rng.integers(len(parts))][0], body)
        else:
            parts[at] = (kind, body + rng.bytes(20))
    return png(parts)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Name and content of the chunks of a PNG."""
    found, at = [], len(PNG)
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png(parts: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks."""
    return PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


MUTATIONS: tuple[Callable[[bytes, Rng, list[bytes]], bytes], ...] = (flip, cut, splice, header, chunk_edit)


def main(count: int, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    rng = np.random.default_rng(seed)
    known = seeds()
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for number in range(count):
        mutate = MUTATIONS[number % len(MUTATIONS)]
        data = mutate(known[number // len(MUTATIONS) % len(known)], rng, known)
        began = time.process_time()
        try:
            image = decode_image(unwrap_base64(base64.b64encode(data) if number % 7 == 0 else data), "x.png")
            fits = min(image.size) >= MIN_SIDE and image.size[0] * image.size[1] <= MAX_PIXELS
            outcomes["read" if image.mode == "L" and fits else f"mode {image.mode}, size {image.size}"] += 1
        except ImageError as error:
            outcomes["refused" if str(error).startswith("x.png: ") else f"says {error}"] += 1
        except BaseException as error:
            outcomes[f"{type(error).__name__}: {error} (number {number}, {mutate.__name__})"] += 1
        slowest = max(slowest, time.process_time() - began)
    print(json.dumps({"outcomes": outcomes, "slowest_s": slowest, "memory_bytes": most_memory()}))


def most_memory() -> int:
    """Bytes that this process ever had in memory. The ru_maxrss of getrusage counts its parent's before it, too."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
