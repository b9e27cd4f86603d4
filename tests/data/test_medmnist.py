"""source=medmnist: a small file of the same layout from a local server, and the published split all the way."""

from __future__ import annotations

import hashlib
import io
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumonia.config.compose import compose
from pneumonia.config.schema import Config, DataConfig, SplitConfig
from pneumonia.data.prepare import prepare
from pneumonia.data.sources import fetch
from pneumonia.errors import ConfigError, DataError, SourceUnavailable
from pneumonia.files import locked
from tests.file_server import FileServer, file_server

PARTS = {"train": 160, "val": 110, "test": 60}
PATH = "/mirror/pneumoniamnist.npz"


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Images of noise, a third of them normal, in MedMNIST's layout."""
    rng = np.random.default_rng(0)
    made = {}
    for part, images in PARTS.items():
        made[f"{part}_images"] = rng.integers(0, 256, (images, 28, 28), np.uint8)
        made[f"{part}_labels"] = (np.arange(images) % 3 > 0).astype(np.uint8)[:, None]
    return {**made, **changes}


def packed(content: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **content)  # type: ignore[arg-type]
    return stream.getvalue()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        running.files[PATH] = packed(arrays())
        yield running


def settings(server: FileServer, *more: str) -> Config:
    md5 = hashlib.md5(server.files[PATH], usedforsecurity=False).hexdigest()
    mirror = [f"data.medmnist_url={server.address}{PATH}", f"data.medmnist_md5={md5}", "data.medmnist_size=28"]
    return compose(["data=medmnist", *mirror, *more])


def test_images_arrive_as_they_are_in_their_published_parts(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(server)
    raw = fetch(config.data, tmp_path / "raw")
    first = arrays()["val_images"][4]
    # Enlarged as preprocessing would, because smaller images than 64 pixels are not read.
    large = Image.fromarray(first).resize((224, 224), Image.Resampling.BILINEAR)
    assert (np.asarray(Image.open(raw / "val/PNEUMONIA/00004.png")) == np.asarray(large)).all()
    data = prepare(config, raw, tmp_path / "prepared")
    assert data.manifest["counts"]["by_split"] == PARTS
    assert data.manifest["split"]["strategy"] == "official"
    assert data.manifest["split"]["note"] is None
    assert data.manifest["patients"] == "unknown"
    for path, label, part in zip(data.index["path"], data.index["label"], data.index["split"], strict=True):
        assert (part, label) == tuple(path.split("/")[:2])
        assert label == ("PNEUMONIA" if int(Path(path).stem) % 3 else "NORMAL")
    server.asked.clear()
    capsys.readouterr()
    fetch(config.data, raw)
    assert server.asked == []
    assert "is up to date" in capsys.readouterr().err


def test_another_split_is_refused_whether_the_source_is_named_again_or_not(server: FileServer, tmp_path: Path) -> None:
    raw = fetch(settings(server).data, tmp_path / "raw")
    for config in (settings(server, "split.strategy=patient"), Config(split=SplitConfig(strategy="stratified"))):
        with pytest.raises(DataError, match=r"has a split of its own.*give data=medmnist"):
            prepare(config, raw, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_is_completed_by_the_second_run(server: FileServer, tmp_path: Path, ranges: bool) -> None:
    size = len(server.files[PATH])
    server.cuts, server.ranges = [size // 2], ranges
    config = settings(server).data
    with pytest.raises(SourceUnavailable, match=rf"cut off or no answer.*{size // 2:,} bytes are kept"):
        fetch(config, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    fetch(config, tmp_path / "raw")
    assert server.ranges_asked(PATH) == [None, f"bytes={size // 2}-"]
    assert len(list((tmp_path / "raw").rglob("*.png"))) == sum(PARTS.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".raw.download.lock", "raw"]


def test_a_part_that_is_whole_already_is_used(server: FileServer, tmp_path: Path) -> None:
    part = tmp_path / ".raw.download/pneumoniamnist.npz.part"
    part.parent.mkdir()
    part.write_bytes(server.files[PATH])
    fetch(settings(server).data, tmp_path / "raw")
    assert len(list((tmp_path / "raw").rglob("*.png"))) == sum(PARTS.values())


def test_another_file_is_refused_and_removed(server: FileServer, tmp_path: Path) -> None:
    config = compose(["data=medmnist", "data.medmnist_size=28", f"data.medmnist_url={server.address}{PATH}"]).data
    with pytest.raises(DataError, match=r"came with MD5 [0-9a-f]{32}, expected 28209eda62fecd6e6a2d98b1501bb15f"):
        fetch(config, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    assert list((tmp_path / ".raw.download").iterdir()) == []


def test_no_server_and_no_file_are_said(server: FileServer, tmp_path: Path) -> None:
    for url, says in ((f"{server.address}/gone.npz", "HTTP 404"), ("http://127.0.0.1:9/x.npz", "refused")):
        with pytest.raises(SourceUnavailable, match=says) as caught:
            fetch(DataConfig(source="medmnist", medmnist_url=url), tmp_path / "raw")
        assert caught.value.exit_code == 4
        assert "data=phantom" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"val_images": np.zeros((110, 32, 32), np.uint8)}, r"val_images is uint8 \(110, 32, 32\), expected uint8"),
        ({"val_images": np.zeros((110, 28, 28), np.float32)}, "val_images is float32"),
        ({"test_labels": np.full((60, 1), 2, np.uint8)}, "test_labels is .* of 0 and 1"),
        ({"test_labels": np.zeros((59, 1), np.uint8)}, r"expected \(60, 1\)"),
        ({"train_images": np.array([{"a": 1}], dtype=object)}, "allow_pickle=False"),
    ],
)
def test_another_layout_is_refused_and_nothing_is_unpickled(
    server: FileServer, tmp_path: Path, changes: dict[str, np.ndarray], says: str
) -> None:
    server.files[PATH] = packed(arrays(**changes))
    with pytest.raises(DataError, match=f"not a file of MedMNIST's layout.*{says}"):
        fetch(settings(server).data, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_size_that_is_not_published_is_a_usage_error() -> None:
    with pytest.raises(ConfigError, match=r"data\.medmnist_size=64: not one of 28, 224"):
        compose(["data=medmnist", "data.medmnist_size=64"])


@pytest.mark.slow
def test_bundle_and_report_say_that_patients_are_unknown(server: FileServer, tmp_path: Path) -> None:
    from pneumonia.evaluation.evaluate import evaluate
    from pneumonia.training.train import train

    config = settings(server, "experiment=smoke", "tracking.uri=null", f"output_dir={tmp_path}")
    data = prepare(config, fetch(config.data, tmp_path / "raw"), tmp_path / "prepared")
    bundle = train(config, data.path, tmp_path / "run/bundle")
    assert bundle.manifest.data["patients"] == "unknown"
    assert bundle.manifest.data["source"] == "medmnist"
    evaluate(config, bundle.path, data.path, tmp_path / "evaluation")
    report = (tmp_path / "evaluation/report.html").read_text("utf-8")
    assert report.index("Patients are unknown") < report.index("<table")


def test_remains_of_a_fetch_that_was_killed_at_its_end_go_with_the_next(server: FileServer, tmp_path: Path) -> None:
    config = settings(server)
    raw = fetch(config.data, tmp_path / "raw")
    remains = tmp_path / ".raw.download"
    remains.mkdir()
    (remains / "pneumoniamnist.npz").write_bytes(server.files[PATH])
    fetch(config.data, raw)
    assert not remains.exists()


def test_a_process_that_waited_for_another_takes_what_that_one_fetched(server: FileServer, tmp_path: Path) -> None:
    config = settings(server)
    done = fetch(config.data, tmp_path / "done" / "raw")
    server.asked.clear()
    failed: list[BaseException] = []

    def second() -> None:
        try:
            fetch(config.data, tmp_path / "raw")
        except BaseException as error:
            failed.append(error)

    waiter = threading.Thread(target=second)
    with locked(tmp_path / ".raw.download.lock", ""):
        waiter.start()
        waiter.join(0.5)  # long enough to find nothing there and to ask for the lock
        shutil.copytree(done, tmp_path / "raw")
    waiter.join(20)
    assert failed == [] and server.asked == []
