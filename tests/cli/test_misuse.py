"""Slips at the command line: one line that says what to do, and nothing that a file's name can do to a terminal."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pneumonia.bundle import Bundle
from pneumonia.config.compose import compose, sweep
from pneumonia.errors import ConfigError
from tests.bundles import xray
from tests.dicoms import dataset, encapsulate, encoded, gradient, pydicom
from tests.faults.children import pneumoctl

MAIN = [sys.executable, "-c", "from pneumonia.cli.app import main; main()"]
EVIL = "\x1b]0;title\x07x\nerror: step gate: fake.jpeg"


def photo() -> bytes:
    """A sound JPEG whose EXIF nobody can write again."""
    from tests.core.test_odd_images import exif_of

    data = xray(3, (200, 100))
    segment = exif_of(6, b"\x69\x87\x03\x00\x01\x00\x00\x00\x07\x00\x00\x00")
    return data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]


def lossless() -> bytes:
    """A DICOM file whose compression has no decoder here."""
    if pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless).is_available:
        pytest.skip("a decoder for JPEG-LS is installed here")
    made = dataset(gradient(), 8)
    made.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    made.PixelData = encapsulate([b"\xff\xd8" + bytes(64)])
    made["PixelData"].is_undefined_length = True
    return encoded(made)


def test_one_odd_photo_or_missing_decoder_stops_no_bulk_command(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, data in {"a.jpeg": xray(1), "b.jpeg": photo(), "c.dcm": lossless(), "d.jpeg": xray(2)}.items():
        (tmp_path / "in" / name).write_bytes(data)
    done = pneumoctl(tmp_path, "score", "in", "-o", "out.csv", "--bundle", bundle.path)
    assert done.code == 3, done.err
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = {row["filename"]: row["error"] for row in csv.DictReader(stream)}
    assert [name for name, error in rows.items() if error] == ["in/c.dcm"]
    assert "no decoder for JPEG-LS" in rows["in/c.dcm"] and "pip install" in rows["in/c.dcm"]
    names = ["in/a.jpeg", "in/b.jpeg", "in/c.dcm", "in/d.jpeg"]
    done = pneumoctl(tmp_path, "infer", *names, "--bundle", bundle.path)
    assert done.code == 4
    assert [json.loads(line)["filename"] for line in done.out.splitlines()] == ["a.jpeg", "b.jpeg", "d.jpeg"]
    assert done.err.startswith("error: in/c.dcm: no decoder for JPEG-LS")


def test_standard_input_is_an_image(bundle: Bundle, tmp_path: Path) -> None:
    done = subprocess.run([*MAIN, "infer", "-", "--bundle", str(bundle.path)], input=xray(1), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["filename"] == "-"
    done = subprocess.run([*MAIN, "infer", "-", "--bundle", str(bundle.path)], input=b"no", capture_output=True)
    assert done.returncode == 3
    assert b"error: -: not an image this reads" in done.stderr


def test_a_closed_standard_output_is_no_crash(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.jpeg").write_bytes(xray(1))
    main = "from pneumonia.cli.app import main; main()"
    line = f"exec '{sys.executable}' -c '{main}' infer a.jpeg --bundle '{bundle.path}' >&-"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "hint"),
    [("folder", "pneumoctl score"), ("*.jpg", "pneumoctl score"), ("https://example.org/x.jpg", "curl")],
)
def test_what_is_no_file_is_told_where_it_belongs(bundle: Bundle, tmp_path: Path, given: str, hint: str) -> None:
    (tmp_path / "folder").mkdir()
    done = pneumoctl(tmp_path, "infer", given, "--bundle", bundle.path)
    done.fails(3, hint)
    assert given in done.err


def test_a_name_cannot_fake_a_line_nor_move_the_cursor(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / EVIL).write_bytes(b"no image")
    (tmp_path / f"ok{EVIL}\x9b31m").write_bytes(xray(1))
    done = pneumoctl(tmp_path, "infer", EVIL, f"ok{EVIL}\x9b31m", "--bundle", bundle.path)
    assert done.code == 3
    for text in (done.out, done.err):
        assert "\x1b" not in text and "\x9b" not in text
        assert not any(line.startswith("error: step gate") for line in text.splitlines())
    assert json.loads(done.out)["filename"] == f"ok{EVIL}\x9b31m"
    done = pneumoctl(tmp_path, "score", f"no{EVIL}", "-o", "out.csv", "--bundle", bundle.path)
    assert done.code == 3 and "\x1b" not in done.err


def test_names_that_a_spreadsheet_would_run_are_text(bundle: Bundle, tmp_path: Path) -> None:
    names = ['=HYPERLINK("http:evil","click").jpeg', "+1+2.jpeg", "@SUM(1).jpeg", "-1.jpeg", "plain.jpeg"]
    for name in names:
        (tmp_path / name).write_bytes(xray(1))
    (tmp_path / "list.txt").write_text("\n".join(names))
    done = pneumoctl(tmp_path, "score", "@list.txt", "-o", "out.csv", "--bundle", bundle.path)
    assert done.code == 0, done.err
    with (tmp_path / "out.csv").open(newline="") as stream:
        found = [row["filename"] for row in csv.DictReader(stream)]
    assert found == [*(f"'{name}" for name in names[:4]), "plain.jpeg"]
    pneumoctl(tmp_path, "score", "@list.txt", "-o", "out.jsonl", "--bundle", bundle.path).succeeds()
    assert [json.loads(line)["filename"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == names


@pytest.mark.parametrize("given", ["empty", "@empty.txt", "empty.tar"])
def test_no_image_at_all_is_an_error(bundle: Bundle, tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("none")
    (tmp_path / "empty.txt").write_text("\n")
    subprocess.run(["tar", "cf", "empty.tar", "empty"], cwd=tmp_path, check=True)
    pneumoctl(tmp_path, "score", given, "-o", "out.csv", "--bundle", bundle.path).fails(3, f"no images in {given}")
    assert not [name for name in os.listdir(tmp_path) if "out" in name]


def test_a_run_that_never_began_does_not_block_the_next(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.jpeg").write_bytes(xray(1))
    url = ["--mode", "triton", "--url", "127.0.0.1:9"]
    settings = {"inputs": ["a.jpeg"], "mode": "triton", "model_id": None}
    assert pneumoctl(tmp_path, "score", "a.jpeg", "-o", "out.csv", *url).code == 4
    (tmp_path / "out.csv.partial").write_text(json.dumps(settings) + "\n")
    pneumoctl(tmp_path, "score", "a.jpeg", "-o", "out.csv", "--bundle", bundle.path).succeeds()


@pytest.mark.parametrize(
    "command",
    [
        ["data", "fetch", "data=phantom", "data.num_images=40", "data.raw_dir=locked/raw"],
        ["data", "prepare", "data=phantom", "data.num_images=40", "data.prepared_dir=locked/prepared"],
        ["pipeline", "run", "data=phantom"],
        ["demo"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_place_that_may_not_be_written_is_one_line(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    where = tmp_path / "locked" if command[0] in ("pipeline", "demo") else tmp_path
    try:
        done = pneumoctl(where, *command, restricted=True)
    finally:
        (tmp_path / "locked").chmod(0o700)
    assert "Traceback" not in done.err
    done.fails(4, "Permission denied")


def test_values_of_a_sweep_are_taken_as_typed() -> None:
    runs = sweep(["data.root=/röntgen/a,/röntgen/b", "data.seed=1,2"])
    assert [compose(run).data.root for run in runs] == ["/röntgen/a", "/röntgen/a", "/röntgen/b", "/röntgen/b"]
    for wrong in (
        ["data.seed=1,,2"],
        ["data.seed=1,"],
        ["training.num_train_epochs=interval(1,2)"],
        ["data.seed=range("],
    ):
        with pytest.raises(ConfigError) as caught:
            for run in sweep(wrong):
                compose(run)
        assert "\n" not in str(caught.value)


def test_the_environment_is_not_looked_up() -> None:
    with pytest.raises(ConfigError, match=r"model\.name: a value with \$\{"):
        compose(["model.name=${oc.env:HOME}"])


@pytest.mark.parametrize("override", ["model.name=../../x", "model.name=a/b", "data.medmnist_url=file:///etc/passwd"])
def test_names_and_addresses_lead_nowhere_else(override: str) -> None:
    with pytest.raises(ConfigError):
        compose([override])


def test_a_table_leads_nowhere_else(tmp_path: Path) -> None:
    from pneumonia.data.sources.folder import list_images
    from pneumonia.errors import DataError

    (tmp_path / "set").mkdir()
    (tmp_path / "secret.png").write_bytes(xray(1))
    (tmp_path / "set/labels.csv").write_text("path,label\n../secret.png,NORMAL\n")
    with pytest.raises(DataError, match=r"line 2: \.\./secret\.png is outside"):
        list_images(tmp_path / "set")


def test_help_has_a_short_form(tmp_path: Path) -> None:
    done = pneumoctl(tmp_path, "score", "-h")
    assert done.code == 0 and "--output" in done.out
