"""`pneumoctl score` as a user runs it: the table, bad images, kills, restarts of the server, and memory."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from pneumonia.bundle import Bundle
from pneumonia.inference.predictor import open_predictor
from pneumonia.triton.server import TritonServer
from tests.bundles import serving, xray
from tests.inference.test_inputs import write_tar

PNEUMOCTL = [sys.executable, "-c", "from pneumonia.cli.app import main; main()"]
COLUMNS = ["filename", "prediction", "confidence", "probability", "threshold", "uncertain", "model_id", "error"]


def command(*arguments: object) -> list[str]:
    return [*PNEUMOCTL, "score", *map(str, arguments)]


def score(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=120)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def folder(path: Path, count: int) -> Path:
    """Files of 16 different small images."""
    path.mkdir()
    images = [xray(seed, (64, 64)) for seed in range(16)]
    for number in range(count):
        (path / f"{number:05d}.jpeg").write_bytes(images[number % 16])
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 images."""
    return folder(tmp_path_factory.mktemp("many") / "in", 1200)


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """600 images: after the first block of rows, more than are asked for ahead."""
    return folder(tmp_path / "in", 600)


def hold(path: Path) -> bytes:
    """Make an image a pipe, so that a run waits at it until `let_go`; its content."""
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    return content


def let_go(path: Path, content: bytes, process: subprocess.Popen[str]) -> None:
    """Hand the image to the one reader that waits for it, if there is one before the process ends; make it a file."""
    while process.poll() is None:
        try:
            pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # Nobody reads yet.
            time.sleep(0.01)
            continue
        with open(pipe, "wb") as stream:
            stream.write(content)
        break
    path.unlink()
    path.write_bytes(content)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good images and three kinds of bad ones."""
    root = folder(tmp_path / "in", 40)
    (root / "00007.jpeg").write_bytes(b"hello")
    (root / "00008.jpeg").write_bytes(xray(1)[:300])
    (root / "00039.jpeg").write_bytes(b"")
    return root


def expected(bundle: Bundle, root: Path) -> list[tuple[str, str]]:
    """(file name, prediction) of a folder's good images, as `infer` has them."""
    paths = sorted(path for path in root.iterdir())
    answers = open_predictor("onnx", bundle.path).predict([path.read_bytes() for path in paths])
    return [(str(path), answer.label) for path, answer in zip(paths, answers, strict=True)]


@pytest.mark.parametrize("mode", ["onnx", "triton http", "triton grpc"])
def test_one_row_an_image_in_order_and_bad_ones_with_their_error(
    bundle: Bundle, server: TritonServer, mixed: Path, tmp_path: Path, mode: str
) -> None:
    out = tmp_path / "out.csv"
    kind, _, protocol = mode.partition(" ")
    source = ["--url", server.address(protocol), "--protocol", protocol] if protocol else ["--bundle", bundle.path]
    done = score(mixed, "-o", out, "--mode", kind, *source)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout) == {"path": str(out), "rows": 40, "errors": 3}
    rows = table(out)
    assert list(rows[0]) == COLUMNS
    assert [row["filename"] for row in rows] == sorted(map(str, mixed.iterdir()))
    bad = {Path(row["filename"]).stem: row for row in rows if row["error"]}
    assert {name: row["error"].split(" (")[0] for name, row in bad.items()} == {
        "00007": "not an image this reads",
        "00008": "damaged image data",
        "00039": "empty, 0 bytes; a JPEG, PNG or DICOM image was expected",
    }
    assert {row[name] for row in bad.values() for name in COLUMNS[1:-1]} == {""}
    for row in rows:
        if row["error"]:
            continue
        (answer,) = open_predictor("onnx", bundle.path).predict([Path(row["filename"]).read_bytes()])
        assert row["prediction"] == answer.label
        assert float(row["probability"]) == pytest.approx(answer.probability, abs=1e-5)
        assert float(row["confidence"]) == pytest.approx(answer.confidence, abs=1e-5)
        assert (float(row["threshold"]), row["model_id"]) == (pytest.approx(0.4), bundle.model_id)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.csv"]


def test_every_format_has_the_same_table(bundle: Bundle, mixed: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    for suffix in ("csv", "jsonl", "parquet"):
        assert score(mixed, "-o", tmp_path / f"out.{suffix}", "--bundle", bundle.path).returncode == 3
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    parquet = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert parquet.column_names == COLUMNS
    assert parquet.to_pylist() == lines
    assert [{name: "" if value is None else str(value) for name, value in line.items()} for line in lines] == table(
        tmp_path / "out.csv"
    )


def test_all_good_is_exit_code_0_and_archives_are_read_where_they_lie(bundle: Bundle, tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar.gz", {f"{seed}.jpeg": xray(seed, (64, 64)) for seed in range(5)})
    done = score("x.tar.gz", "-o", "out.jsonl", "--bundle", bundle.path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["filename"] for row in rows] == [f"x.tar.gz/{seed}.jpeg" for seed in range(5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "x.tar.gz"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["in", "-o", "out.xlsx"], 2, [".parquet, .csv, .jsonl"]),
        (["in", "-o", "in"], 2, [".parquet, .csv, .jsonl"]),
        (["in", "-o", "old.csv"], 2, ["is there already", "--overwrite"]),
        (["in", "-o", "new.csv", "--mode", "tensorrt"], 2, ["onnx, pytorch, triton"]),
        (["absent", "-o", "new.csv"], 3, ["absent: no such file or folder"]),
        (["in", "-o", "new.csv", "--bundle", "absent"], 4, ["no bundle at absent"]),
        (["in", "-o", "new.csv", "--mode", "triton", "--url", "127.0.0.1:1"], 4, ["no server at 127.0.0.1:1"]),
    ],
)
def test_what_cannot_start_says_why(
    bundle: Bundle, mixed: Path, tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    (tmp_path / "old.csv").write_text("precious")
    named = "--bundle" in arguments or "triton" in arguments
    done = score(*arguments, *([] if named else ["--bundle", bundle.path]), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert [word for word in words if word not in done.stderr] == []
    assert "Traceback" not in done.stderr
    assert (tmp_path / "old.csv").read_text() == "precious"


def rows_safe(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


def wait_for_a_row(process: subprocess.Popen[str], journal: Path) -> None:
    """Until a held run has written its first rows."""
    deadline = time.monotonic() + 60
    while rows_safe(journal) < 1:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def stop_at(process: subprocess.Popen[str], journal: Path, rows: int, how: signal.Signals) -> None:
    """Signal a run once so many rows are safe; it must be held behind them."""
    deadline = time.monotonic() + 60
    while rows_safe(journal) < rows:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(how)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_and_has_every_row_once(bundle: Bundle, tmp_path: Path, how: signal.Signals) -> None:
    out, journal = tmp_path / "out.csv", tmp_path / "out.csv.partial"
    images = folder(tmp_path / "in", 1200)
    run = command(images, "-o", out, "--bundle", bundle.path)
    # Less than a block and a batch before the held image may not be safe yet.
    for rows, held in ((200, images / "00500.jpeg"), (600, images / "01100.jpeg")):
        content = hold(held)
        process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        stop_at(process, journal, rows, how)
        let_go(held, content, process)
        stderr = process.communicate(timeout=60)[1]
        assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), stderr
        assert "Traceback" not in stderr
        assert not out.exists()
    # The power went while a line was written.
    with journal.open("ab") as stream:
        stream.write(b'{"filename": "in/torn')
    safe = rows_safe(journal)
    done = score(*run[len(PNEUMOCTL) + 1 :])
    assert done.returncode == 0, done.stderr
    assert f"going on after {safe} rows" in done.stderr
    assert [(row["filename"], row["prediction"]) for row in table(out)] == expected(bundle, images)
    assert not journal.exists()


def test_results_of_other_inputs_are_not_mixed_in(bundle: Bundle, mixed: Path, tmp_path: Path) -> None:
    out, journal = tmp_path / "out.csv", tmp_path / "out.csv.partial"
    copy = folder(tmp_path / "copy", 5)
    journal.write_text(json.dumps({"inputs": [str(copy)], "mode": "onnx", "model_id": bundle.model_id}) + "\n")
    row = dict.fromkeys(COLUMNS, None) | {"filename": str(copy / "renamed.jpeg"), "error": "x"}
    with journal.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    done = score(copy, "-o", out, "--bundle", bundle.path)
    assert done.returncode == 3
    assert "the inputs changed since" in done.stderr
    done = score(mixed, "-o", out, "--bundle", bundle.path)
    assert done.returncode == 2
    assert "other inputs or another model" in done.stderr
    assert score(mixed, "-o", out, "--bundle", bundle.path, "--overwrite").returncode == 3
    assert len(table(out)) == 40


def test_two_runs_do_not_write_one_table(bundle: Bundle, tmp_path: Path) -> None:
    out, images = tmp_path / "out.csv", folder(tmp_path / "in", 400)
    held = images / "00350.jpeg"
    content = hold(held)
    first = subprocess.Popen(command(images, "-o", out, "--bundle", bundle.path), stderr=subprocess.DEVNULL, text=True)
    try:
        wait_for_a_row(first, tmp_path / "out.csv.partial")
        second = score(images, "-o", out, "--bundle", bundle.path)
        assert second.returncode == 1
        assert "another process is writing it" in second.stderr
    finally:
        let_go(held, content, first)
        assert first.wait(60) == 0
    assert len(table(out)) == 400


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_killed_and_started_again_costs_no_row_and_doubles_none(
    bundle: Bundle, release: Path, several: Path, tmp_path: Path, protocol: str
) -> None:
    with serving(release) as first:
        ports, url = first.ports, first.address(protocol)
        out, journal = tmp_path / "out.csv", tmp_path / "out.csv.partial"
        run = command(several, "-o", out, "--mode", "triton", "--protocol", protocol, "--url", url, "--timeout", 10)
        held = several / "00300.jpeg"
        content = hold(held)
        process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert first.process is not None
        wait_for_a_row(process, journal)
        os.killpg(first.process.pid, signal.SIGKILL)
        # Only when the server is back may the run come as far as that image.
        feeder = threading.Thread(target=let_go, args=(held, content, process), daemon=True)
        feeder.start()
    time.sleep(1)
    assert process.poll() is None, process.communicate()
    with TritonServer(release, ports["http"], ports["grpc"], ports["metrics"]) as second:
        second.wait_ready()
        stderr = process.communicate(timeout=120)[1]
    feeder.join()
    assert process.returncode == 0, stderr
    assert re.search(r"score: .*trying again for 120 s", stderr)
    assert [(row["filename"], row["prediction"]) for row in table(out)] == expected(bundle, several)


def test_a_server_that_stays_away_ends_the_run_and_the_next_one_finishes_it(
    bundle: Bundle, release: Path, several: Path, tmp_path: Path
) -> None:
    out, journal = tmp_path / "out.csv", tmp_path / "out.csv.partial"
    with serving(release) as first:
        run = command(several, "-o", out, "--mode", "triton", "--url", first.address("http"), "--retry-for", 1)
        held = several / "00300.jpeg"
        content = hold(held)
        process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert first.process is not None
        wait_for_a_row(process, journal)
        os.killpg(first.process.pid, signal.SIGKILL)
        # Only when the server is back may the run come as far as that image.
        feeder = threading.Thread(target=let_go, args=(held, content, process), daemon=True)
        feeder.start()
        stderr = process.communicate(timeout=60)[1]
    feeder.join()
    assert process.returncode == 4, stderr
    assert "the same command goes on from there" in stderr
    with serving(release) as second:
        # Another address of the same service is no other run.
        done = score(several, "-o", out, "--mode", "triton", "--url", second.address("http"))
    assert done.returncode == 0, done.stderr
    assert [(row["filename"], row["prediction"]) for row in table(out)] == expected(bundle, several)


MEASURE = """
import sys
from pneumonia.cli.app import main
try:
    main()
finally:
    # The peak of memory that is not of files, in KiB.
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM")), file=sys.stderr)
"""


def peak_mib(arguments: Sequence[object]) -> float:
    run = [sys.executable, "-c", MEASURE, "score", *map(str, arguments)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]) / 1024


def archives(root: Path, images: list[Path]) -> list[str]:
    """A third of the images as a list, one as a tar, one as a zip."""
    root.mkdir()
    third = len(images) // 3
    (root / "list.txt").write_text("".join(f"{path}\n" for path in images[:third]))
    write_tar(root / "x.tar", {f"{n}.jpeg": path.read_bytes() for n, path in enumerate(images[third : 2 * third])}, "w")
    with zipfile.ZipFile(root / "x.zip", "w") as archive:
        for number, path in enumerate(images[2 * third :]):
            archive.write(path, f"{number}.jpeg")
    return [f"@{root}/list.txt", f"{root}/x.tar", f"{root}/x.zip"]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_images(bundle: Bundle, many: Path, tmp_path: Path) -> None:
    images = sorted(many.iterdir())
    few = peak_mib([*archives(tmp_path / "few", images[:600]), "-o", tmp_path / "few.csv", "--bundle", bundle.path])
    more = peak_mib([*archives(tmp_path / "more", 3 * images), "-o", tmp_path / "more.csv", "--bundle", bundle.path])
    assert len(table(tmp_path / "more.csv")) == 3600
    assert more - few < 12, f"{few:.0f} MiB for 600 images, {more:.0f} for 3,600"
