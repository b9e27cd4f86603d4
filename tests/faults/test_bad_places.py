"""The rows of places to write and of time: full disks, no permission, two at once, clocks that are set back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumonia.bundle import Bundle
from pneumonia.data.prepare import PreparedData, load_prepared
from pneumonia.data.sources import read_source
from pneumonia.errors import StorageError
from pneumonia.evaluation.evaluate import evaluate
from pneumonia.files import replace_directory
from pneumonia.release.publish import publish
from tests.faults.children import begin, pneumoctl
from tests.faults.rows import BY_NAME, images, named
from tests.faults.test_bad_servers import wait_until
from tests.phantoms import OPEN_GATE, smoke_config
from tests.xray_folders import noise, prepare_folder


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of as many KiB as the parameter says."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "none", str(folder)], capture_output=True, text=True
    ) if shutil.which("mount") else None  # fmt: skip
    if mounted is None or mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip() if mounted else 'no mount'}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def on(size_kib: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("small", [size_kib], indirect=True, ids=[f"{size_kib}KiB"])


@on(200)
def test_a_full_disk_while_fetching(small: Path, tmp_path: Path) -> None:
    row = named("disk full: fetch")
    words = ["data", "fetch", "data=phantom", "data.num_images=60", "data.workers=1", f"data.raw_dir={small}/raw"]
    pneumoctl(tmp_path, *words).fails(row.code, row.words)
    assert list(small.iterdir()) == []


@on(6000)
def test_a_full_disk_while_preparing(small: Path, tmp_path: Path) -> None:
    row = named("disk full: prepare")
    root = images(tmp_path / "xrays")
    before = prepare_folder(root, small).manifest
    words = ["data", "prepare", "data=folder", f"data.root={root}", "data.workers=1", "split.seed=7",
             f"data.raw_dir={small}/raw", f"data.prepared_dir={small}/prepared"]  # fmt: skip
    pneumoctl(tmp_path, *words).fails(row.code, row.words)
    assert load_prepared(small / "prepared").manifest == before
    assert sorted(path.name for path in small.iterdir()) == [".prepared.lock", "prepared", "raw"]


@on(700)
def test_a_full_disk_while_training(small: Path, prepared: PreparedData, tmp_path: Path) -> None:
    row = named("disk full: train")
    words = ["train", "experiment=smoke", "tracking.uri=null", f"output_dir={small}/runs", "--prepared", prepared.path]
    pneumoctl(tmp_path, *words).fails(row.code, row.words)
    assert list(small.rglob("bundle.json")) == []


@on(8)
def test_a_full_disk_while_publishing(small: Path, bundle: Bundle, tmp_path: Path) -> None:
    row = named("disk full: publish")
    pneumoctl(tmp_path, "publish", "--bundle", bundle.path, "--root", small).fails(row.code, row.words)
    with pytest.raises(StorageError, match="No space left"):
        publish(bundle.path, small)
    assert list((small / "releases").iterdir()) == []


def test_no_permission_to_write(tmp_path: Path) -> None:
    row = named("folder without permission to write")
    root = images(tmp_path / "xrays")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    words = ["data=folder", f"data.root={root}", f"data.raw_dir={closed}/raw"]
    pneumoctl(tmp_path, "data", "fetch", *words, restricted=True).fails(row.code, row.words)
    words[2:] = [f"data.prepared_dir={closed}/prepared"]
    pneumoctl(tmp_path, "data", "prepare", *words, restricted=True).fails(row.code, row.words)


@pytest.mark.parametrize("command", ["evaluate", "export", "calibrate", "train"])
def test_an_output_folder_with_other_files(
    command: str, trained: Bundle, prepared: PreparedData, tmp_path: Path
) -> None:
    row = named("`--output` that holds other files")
    reports = tmp_path / "reports"
    kept = (reports / "smoke" / "bundle" if command == "train" else reports) / "thesis.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("years of work")
    evaluation = tmp_path / "evaluation"
    if command == "export":
        evaluate(smoke_config(tmp_path), trained.path, prepared.path, evaluation)
    places = {
        "evaluate": ["--bundle", trained.path, "--prepared", prepared.path, "--output", reports],
        "export": [*OPEN_GATE, "--bundle", trained.path, "--evaluation", evaluation, "--prepared", prepared.path,
                   "--output", reports],
        "calibrate": [trained.path, images(tmp_path / "xrays"), "--output", reports],
        "train": ["experiment=smoke", "model.name=smoke", f"output_dir={reports}", "--prepared", prepared.path],
    }  # fmt: skip
    pneumoctl(tmp_path, command, *places[command], "tracking.uri=null").fails(row.code, row.words)
    assert kept.read_text() == "years of work"
    assert [path.name for path in reports.rglob("*") if path.is_file()] == ["thesis.txt"]


@pytest.mark.parametrize("there", [True, False], ids=["whole", "dangling"])
def test_a_link_as_target_stays_and_the_folder_it_names_is_replaced(there: bool, tmp_path: Path) -> None:
    disk, link = tmp_path / "disk" / "models", tmp_path / "models"
    disk.parent.mkdir()
    if there:
        disk.mkdir()
        (disk / "old").touch()
    link.symlink_to(disk)
    with replace_directory(link) as building:
        (building / "new").touch()
    assert link.is_symlink()
    assert [path.name for path in disk.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "models"]
    assert [path.name for path in disk.parent.iterdir()] == ["models"]


@on(200)
def test_a_mount_point_as_target_is_refused_and_kept(small: Path) -> None:
    row = named("target that is a mount point")
    (small / "old").touch()
    with pytest.raises(StorageError, match=row.words), replace_directory(small) as building:
        (building / "new").touch()
    assert [path.name for path in small.iterdir()] == ["old"]
    assert [path.name for path in small.parent.iterdir()] == ["small"]


def test_two_processes_prepare_one_folder(tmp_path: Path) -> None:
    row = named("two processes preparing one folder")
    root = images(tmp_path / "xrays")
    first = min(root.rglob("*.jpeg"))
    content = first.read_bytes()
    first.unlink()
    # The first process waits at a pipe with its work half done until the second one is there.
    os.mkfifo(first)
    words = ["data", "prepare", "data=folder", f"data.root={root}", "data.workers=1", BY_NAME]
    one = begin(tmp_path, *words)
    wait_until(lambda: bool(list(tmp_path.glob("data/.prepared.*.part"))))
    two = begin(tmp_path, *words)
    wait_until(lambda: row.words in (two.folder / "err").read_text())
    with first.open("wb") as pipe:
        pipe.write(content)
    ends = [one.wait(), two.wait()]
    ends[0].succeeds()
    ends[1].succeeds(row.words)
    assert "prepare: data/prepared is up to date" in ends[1].err
    assert json.loads(ends[0].out) == json.loads(ends[1].out)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".prepared.lock", "prepared", "raw"]


def test_a_clock_that_goes_back_hides_no_change_of_a_file(tmp_path: Path) -> None:
    row = named("clock going backwards")
    root = images(tmp_path / "xrays")
    words = ["data", "prepare", "data=folder", f"data.root={root}", "data.workers=1"]
    before = json.loads(pneumoctl(tmp_path, *words).out)["digest"]
    changed = min(root.rglob("*.jpeg"))
    size = changed.stat().st_size
    other = next(data for seed in range(1000) if len(data := noise(f"other {seed}")) == size)
    changed.write_bytes(other)
    os.utime(changed, (0, 0))  # written after the clock was set to 1970
    done = pneumoctl(tmp_path, *words)
    assert done.code == row.code
    assert json.loads(done.out)["digest"] != before


def test_a_clock_that_goes_back_costs_no_checkpoint(prepared: PreparedData, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    from pneumonia.training.tracking import NoTracker
    from pneumonia.training.train import make_trainer

    class SetBack(TrainerCallback):  # type: ignore[misc]
        """Every checkpoint is older than the one before."""

        def on_evaluate(self, args: object, state: object, control: object, **kwargs: object) -> None:
            for number, folder in enumerate(sorted(tmp_path.glob("checkpoint-*"))):
                os.utime(folder, (2_000_000_000 + number, 2_000_000_000 + number))

    trainer = make_trainer(smoke_config(tmp_path, "training.max_steps=45"), prepared, tmp_path, NoTracker())
    trainer.add_callback(SetBack())
    trainer.train()
    assert trainer.state.global_step == 45
    best = Path(trainer.state.best_model_checkpoint).name
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-45", best}


def test_a_folder_whose_name_is_not_utf8_is_prepared_and_found_again(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xf6ntgen"))
    try:
        images(root)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (min(root.rglob("*.jpeg"))).rename(root / os.fsdecode(b"NORMAL/IM-0001-\xf6.jpeg"))
    data = prepare_folder(root, tmp_path / "out")
    assert read_source(tmp_path / "out" / "raw")["root"] == str(root)
    assert os.fsdecode(b"NORMAL/IM-0001-\xf6.jpeg") in data.index["path"]
