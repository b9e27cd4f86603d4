"""The image rows of the table, through the library, the command line, the real server and `data prepare`."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pneumonia import contract
from pneumonia.bundle import Bundle
from pneumonia.core.image import decode_image, read_image
from pneumonia.data.prepare import PreparedData, load_prepared
from pneumonia.errors import ImageError
from pneumonia.inference.predictor import open_predictor
from pneumonia.triton.server import TritonServer
from tests.faults.children import Done, begin, pneumoctl, unprivileged
from tests.faults.rows import BY_NAME, IMAGES, PLACES, Row, images, jpeg, named, picture
from tests.triton.test_serving import as_json, outputs, post

rows = pytest.mark.parametrize("row", IMAGES, ids=str)
served = pytest.mark.parametrize("row", [row for row in IMAGES if row.served], ids=str)


def expected(row: Row) -> np.ndarray:
    """What a readable row shows."""
    if row.name != "palette with alpha":
        return picture()
    shown = picture() | 1
    shown[:, :64] = 0
    return shown


@pytest.fixture
def brought(row: Row, tmp_path: Path) -> Path:
    assert row.make is not None
    try:
        return row.make(tmp_path)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")


@rows
def test_the_library(row: Row, brought: Path) -> None:
    with unprivileged():
        if row.code == 0:
            shown = np.asarray(decode_image(read_image(brought), brought.name))
            assert shown.shape == (96, 128)
            assert np.abs(shown.astype(int) - expected(row)).mean() < 1.5
        else:
            with pytest.raises(ImageError) as caught:
                decode_image(read_image(brought), brought.name)
            assert caught.value.exit_code == row.code
            assert row.words in str(caught.value)
            assert brought.name in str(caught.value)


@rows
def test_the_command_line(row: Row, brought: Path, bundle: Bundle, tmp_path: Path) -> None:
    done = pneumoctl(tmp_path, "infer", brought, "--bundle", bundle.path, restricted=row.restricted)
    if row.code == 0:
        done.succeeds()
        assert done.err == ""
        assert json.loads(done.out)["filename"] == os.fsencode(brought.name).decode("utf-8", "replace")
    else:
        done.fails(row.code, row.words)
        assert done.err.startswith(f"error: {brought}: ")
        assert len(done.err.splitlines()) == 1


@served
def test_the_server(row: Row, brought: Path, bundle: Bundle, server: TritonServer) -> None:
    data = read_image(brought)
    raw_status, raw = post(server, data, {"Inference-Header-Content-Length": "0"})
    status, body = post(server, as_json(data))
    if row.code == 0:
        assert (raw_status, status) == (200, 200)
        (here,) = open_predictor("onnx", bundle.path).predict([data])
        assert outputs(body)["probability"] == pytest.approx([here.probability], abs=1e-6)
        assert outputs(body)["prediction"][0].encode() in raw
    else:
        assert (raw_status, status) == (400, 400)
        assert row.words in json.loads(body)["error"]
        assert row.words.encode() in raw
    # Whatever came, the next one is answered.
    assert post(server, as_json(jpeg()))[0] == 200


@served
def test_a_client_of_the_server(row: Row, brought: Path, server: TritonServer) -> None:
    for protocol in contract.PROTOCOLS:
        predictor = open_predictor("triton", url=server.address(protocol), protocol=protocol)
        if row.code == 0:
            assert len(predictor.predict([read_image(brought)])) == 1
        else:
            with pytest.raises(ImageError) as caught:
                predictor.predict([read_image(brought)])
            assert row.words in str(caught.value)


@pytest.fixture(scope="module")
def among_others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Done, dict[str, Path], PreparedData]]:
    """A folder with every row among good images, prepared by the command line."""
    folder = Path(tmp_path_factory.mktemp("among"))
    root = images(folder / "xrays")
    names = {}
    for number, row in enumerate(row for row in IMAGES if "disappears" not in row.name):
        (folder / str(number)).mkdir()
        assert row.make is not None
        made = row.make(folder / str(number))
        # Every image of the table is another patient's, and shows something else, so that none is a duplicate.
        names[row.name] = made.rename(root / "NORMAL" / f"IM-{500 + number}-{made.name}")
    (loop := names["symlink loop"]).unlink()
    loop.symlink_to(loop)
    out = pneumoctl(folder, "data", "prepare", "data=folder", f"data.root={root}", "data.workers=1", restricted=True)
    assert out.code == 0, out.err
    yield out, names, load_prepared(folder / "data/prepared")


def test_preparing_a_folder_with_all_of_them_goes_through(
    among_others: tuple[Done, dict[str, Path], PreparedData],
) -> None:
    done, names, _ = among_others
    done.succeeds()
    bad = sum(row.code != 0 for row in IMAGES if row.name in names)
    assert f"{bad} unreadable files left out" in done.err


@pytest.mark.parametrize("row", [row for row in IMAGES if "disappears" not in row.name], ids=str)
def test_each_of_them_is_prepared_or_left_out_with_its_reason(
    row: Row, among_others: tuple[Done, dict[str, Path], PreparedData]
) -> None:
    _, names, data = among_others
    path = f"NORMAL/{names[row.name].name}"
    left_out = {entry["path"]: entry["why"] for entry in data.manifest["unreadable"]}
    if row.code == 0:
        same = [entry["path"] for entry in data.manifest["duplicates"]]
        assert path in data.index["path"] or path.encode("utf-8", "backslashreplace").decode() in same
        assert path not in left_out
    else:
        assert path not in data.index["path"]
        assert row.words in left_out[path]


def test_a_file_that_disappears_while_its_folder_is_prepared(tmp_path: Path) -> None:
    row = named("file that disappears while its folder is prepared")
    assert row in PLACES
    root = images(tmp_path / "xrays")
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpeg"))
    # Reading a pipe waits for its writer: so the folder has been listed, and its second file has not been read.
    content = (root / names[0]).read_bytes()
    (root / names[0]).unlink()
    os.mkfifo(root / names[0])

    def vanish() -> None:
        with (root / names[0]).open("wb") as pipe:
            (root / names[1]).unlink()
            pipe.write(content)

    running = begin(tmp_path, "data", "prepare", "data=folder", f"data.root={root}", "data.workers=1", BY_NAME)
    writer = threading.Thread(target=vanish, daemon=True)
    writer.start()
    done = running.wait()
    done.succeeds(row.words)
    assert f"{names[1]}: cannot be read (No such file or directory)" in done.err
    (left_out,) = load_prepared(tmp_path / "data/prepared").manifest["unreadable"]
    assert left_out["path"] == names[1]
