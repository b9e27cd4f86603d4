"""`pneumoctl infer` as a user runs it: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.cli.demo import free_ports
from pneumonia.inference.predictor import open_predictor
from pneumonia.triton.server import TritonServer
from tests.bundles import xray

PNEUMOCTL = [sys.executable, "-c", "from pneumonia.cli.app import main; main()"]


def infer(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*PNEUMOCTL, "infer", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three images, in a folder of their own."""
    folder = tmp_path / "xrays"
    folder.mkdir()
    paths = [folder / f"person{seed}_virus_{seed}.jpeg" for seed in range(3)]
    for seed, path in enumerate(paths):
        path.write_bytes(xray(seed))
    return paths


def test_one_image_is_one_line_of_exactly_this_form(bundle: Bundle, images: list[Path]) -> None:
    done = infer(images[1], "--bundle", bundle.path)
    (expected,) = open_predictor("onnx", bundle.path).predict([images[1].read_bytes()])
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout == (
        f'{{"filename": "person1_virus_1.jpeg", "mode": "onnx", "prediction": "{expected.label}", '
        f'"confidence": "{expected.confidence:.4f}"}}\n'
    )


def test_several_images_are_one_line_each_in_order(bundle: Bundle, images: list[Path]) -> None:
    done = infer(*images, "--bundle", bundle.path)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["filename"] for row in rows] == [path.name for path in images]
    for row in rows:
        assert list(row) == ["filename", "mode", "prediction", "confidence"]
        assert row["prediction"] in contract.LABELS
        assert re.fullmatch(r"[01]\.\d{4}", row["confidence"])


def test_a_person_at_a_terminal_reads_it_indented(bundle: Bundle, images: list[Path]) -> None:
    theirs, ours = pty.openpty()
    command = [*PNEUMOCTL, "infer", str(images[0]), "--bundle", str(bundle.path)]
    subprocess.run(command, stdout=ours, check=True, timeout=60)
    os.close(ours)
    text = os.read(theirs, 10_000).decode().replace("\r\n", "\n")
    os.close(theirs)
    assert text.startswith('{\n  "filename": "person0_virus_0.jpeg",\n  "mode": "onnx",\n')
    assert set(json.loads(text)) == {"filename", "mode", "prediction", "confidence"}


@pytest.mark.parametrize("protocol", contract.PROTOCOLS)
def test_the_server_gives_the_same_answers(
    bundle: Bundle, server: TritonServer, images: list[Path], protocol: str
) -> None:
    there = infer(*images, "--mode", "triton", "--protocol", protocol, "--url", server.address(protocol))
    here = infer(*images, "--bundle", bundle.path)
    assert there.returncode == 0, there.stderr
    assert there.stdout.replace('"triton"', '"onnx"') == here.stdout


@pytest.mark.parametrize("mode", ["onnx", "triton"])
def test_a_bad_image_is_named_and_the_others_are_answered(
    bundle: Bundle, server: TritonServer, images: list[Path], tmp_path: Path, mode: str
) -> None:
    bad = tmp_path / "notes.jpeg"
    bad.write_text("hello")
    source = ["--bundle", bundle.path] if mode == "onnx" else ["--url", server.address("http")]
    done = infer(images[0], bad, tmp_path / "absent.png", images[2], "--mode", mode, *source)
    assert done.returncode == 3
    assert [json.loads(line)["filename"] for line in done.stdout.splitlines()] == [images[0].name, images[2].name]
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: {bad}: not an image this reads")
    assert second == f"error: {tmp_path}/absent.png: cannot be read (No such file or directory); give the path of a " \
                     "JPEG, PNG or DICOM file"  # fmt: skip


def test_a_folder_is_not_an_image(bundle: Bundle, images: list[Path]) -> None:
    done = infer(images[0].parent, "--bundle", bundle.path)
    assert (done.returncode, done.stdout) == (3, "")
    assert "Is a directory" in done.stderr
    assert "give the path of a JPEG, PNG or DICOM file" in done.stderr


def test_a_name_that_is_not_utf8_is_printed_with_replacements(bundle: Bundle, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/r\xf6ntgen.jpeg"
    try:
        Path(os.fsdecode(path)).write_bytes(xray(1))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    done = subprocess.run(
        [*map(os.fsencode, PNEUMOCTL), b"infer", path, b"--bundle", os.fsencode(bundle.path)], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["filename"] == "r\ufffdntgen.jpeg"


def test_the_bundle_of_the_working_folder_is_the_default(bundle: Bundle, images: list[Path]) -> None:
    assert infer(images[0], cwd=bundle.path.parent).returncode == 0


def fails(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It ended with `code`, nothing on stdout, one message with every word, and no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert [word for word in words if word not in done.stderr] == [], done.stderr


def test_without_a_bundle(images: list[Path], tmp_path: Path) -> None:
    fails(infer(images[0], cwd=tmp_path), 4, "no bundle at models", "make demo", "--bundle")


def test_without_a_server(images: list[Path]) -> None:
    (port,) = free_ports(1)
    for protocol in contract.PROTOCOLS:
        done = infer(images[0], "--mode", "triton", "--protocol", protocol, "--url", f"127.0.0.1:{port}")
        fails(done, 4, f"127.0.0.1:{port}", "pneumoctl serve", "--url")


def test_without_a_gpu(bundle: Bundle, images: list[Path]) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    fails(infer(images[0], "--bundle", bundle.path, "--device", "cuda"), 4, "--device cuda", "--device cpu")
    fails(infer(images[0], "--bundle", bundle.path, "--mode", "tensorrt"), 4, "tensorrt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode", "keras"], ["keras", "onnx, pytorch, triton, tensorrt"]),
        (["--device", "tpu"], ["tpu", "auto, cpu, cuda"]),
        (["--mode", "triton", "--protocol", "ftp"], ["ftp", "http, grpc"]),
        (["--mode", "triton", "--url", "nowhere"], ["nowhere", "host:port"]),
    ],
)
def test_an_option_that_is_none(bundle: Bundle, images: list[Path], arguments: list[str], words: list[str]) -> None:
    fails(infer(images[0], "--bundle", bundle.path, *arguments), 2, *words)


def test_nothing_is_reported_to_anyone_and_no_file_is_left(bundle: Bundle, images: list[Path], tmp_path: Path) -> None:
    # ONNX Runtime's telemetry starts with an identity in the home folder and a session in the temporary one.
    home = tmp_path / "home"
    home.mkdir()
    # It holds its tongue where it takes the machine for a CI runner, so that has to go too.
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")}
    command = [*PNEUMOCTL, "infer", str(images[0]), "--bundle", str(bundle.path)]
    subprocess.run(command, env=kept | {"HOME": str(home), "TMPDIR": str(home)}, check=True, timeout=60)
    assert list(home.rglob("*")) == []
