"""Preparing: what is kept, what is refused, when work is done again, and that nothing is ever half written."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumonia import contract
from pneumonia.config.schema import SplitConfig
from pneumonia.core.dicom import SALT_ENV
from pneumonia.core.preprocess import Preprocessing, pixels
from pneumonia.data.prepare import PreparedData, load_prepared, prepare
from pneumonia.data.sources import fetch
from pneumonia.errors import DataError
from tests.xray_folders import folder_config, kaggle_names, noise, prepare_folder, write_images


def patients_by_part(data: PreparedData) -> dict[str, set[str]]:
    return {part: set(data.patients[data.indices(part)].tolist()) for part in contract.SPLITS}


def test_index_cache_and_manifest_agree_with_the_files(kaggle: Path, tmp_path: Path) -> None:
    data = prepare_folder(kaggle, tmp_path)
    paths = data.index["path"]
    assert paths == sorted(kaggle_names())
    assert data.pixels.shape == (len(paths), 224, 224)
    for row in (0, 17, len(paths) - 1):
        expected = pixels((kaggle / paths[row]).read_bytes(), Preprocessing())
        assert (data.pixels[row] == expected).all()
        assert contract.LABELS[data.labels[row]] == paths[row].split("/")[0]
    counts = data.manifest["counts"]
    assert counts["patients"] == 72
    for part in contract.SPLITS:
        rows = data.indices(part)
        assert counts["by_split"][part] == len(rows)
        assert list(counts["by_class"][part].values()) == np.bincount(data.labels[rows], minlength=2).tolist()
    assert sum(counts["by_split"].values()) == len(paths)


def test_no_patient_is_in_two_parts(kaggle: Path, tmp_path: Path) -> None:
    data = prepare_folder(kaggle, tmp_path)
    parts = patients_by_part(data)
    assert parts["train"].isdisjoint(parts["val"] | parts["test"])
    assert parts["val"].isdisjoint(parts["test"])
    assert data.manifest["split"]["straddling_patients"] == 0
    # Both names of one child, as the names of the Kaggle set have it.
    where = dict(zip(data.index["path"], data.index["split"], strict=True))
    assert where["PNEUMONIA/person3_bacteria_3.jpeg"] == where["PNEUMONIA/person3_virus_103.jpeg"]
    assert where["NORMAL/IM-0003-0001.jpeg"] == where["NORMAL/NORMAL2-IM-0003-0001.jpeg"]


def test_the_image_level_split_counts_the_patients_it_tears_apart(
    kaggle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepare_folder(kaggle, tmp_path, SplitConfig(strategy="stratified"))
    parts = list(patients_by_part(data).values())
    torn = (parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2])
    assert len(torn) > 0
    assert data.manifest["split"]["straddling_patients"] == len(torn)
    assert f"warning: {len(torn)} patients are in more than one part" in capsys.readouterr().err


def test_a_second_run_is_instant_and_touches_nothing(
    kaggle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare_folder(kaggle, tmp_path)
    before = os.stat(first.path / contract.PIXELS_FILE)
    capsys.readouterr()
    began = time.monotonic()
    second = prepare_folder(kaggle, tmp_path)
    assert time.monotonic() - began < 1.0
    assert "is up to date, 96 images" in capsys.readouterr().err
    after = os.stat(first.path / contract.PIXELS_FILE)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert second.manifest == first.manifest


@pytest.mark.parametrize("change", ["content", "new file", "label", "split", "fraction"])
def test_any_change_prepares_again_and_gives_another_digest(kaggle: Path, tmp_path: Path, change: str) -> None:
    before = prepare_folder(kaggle, tmp_path).manifest["digest"]
    split, fraction = SplitConfig(), 1.0
    if change == "content":
        (kaggle / "NORMAL/IM-0001-0001.jpeg").write_bytes(noise("another"))
    elif change == "new file":
        (kaggle / "NORMAL/IM-0777-0001.jpeg").write_bytes(noise("new"))
    elif change == "label":
        (kaggle / "NORMAL/IM-0001-0001.jpeg").rename(kaggle / "PNEUMONIA/IM-0001-0001.jpeg")
    elif change == "split":
        split = SplitConfig(seed=7)
    else:
        fraction = 0.9
    assert prepare_folder(kaggle, tmp_path, split, fraction=fraction).manifest["digest"] != before


def test_the_digest_is_of_the_data_not_of_the_place_or_the_workers(kaggle: Path, tmp_path: Path) -> None:
    first = prepare_folder(kaggle, tmp_path / "one", workers=1).manifest
    copy = shutil.copytree(kaggle, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    second = prepare_folder(copy, tmp_path / "two", workers=2).manifest
    assert second["fingerprint"] != first["fingerprint"]
    assert second["digest"] == first["digest"]


def test_exact_duplicates_are_dropped_and_their_patients_joined(kaggle: Path, tmp_path: Path) -> None:
    # person1 and person2 own one image, so person1_virus_900 and person2_bacteria_2 are of one child.
    shutil.copy(kaggle / "PNEUMONIA/person1_bacteria_1.jpeg", kaggle / "PNEUMONIA/person2_virus_800.jpeg")
    (kaggle / "PNEUMONIA/person1_virus_900.jpeg").write_bytes(noise("900"))
    data = prepare_folder(kaggle, tmp_path)
    assert data.manifest["duplicates"] == [
        {"path": "PNEUMONIA/person2_virus_800.jpeg", "same_as": "PNEUMONIA/person1_bacteria_1.jpeg"}
    ]
    assert len(set(data.index["sha256"])) == len(data.labels) == len(data.pixels) == 97
    row = {path: number for number, path in enumerate(data.index["path"])}
    one, other = row["PNEUMONIA/person1_virus_900.jpeg"], row["PNEUMONIA/person2_bacteria_2.jpeg"]
    assert data.patients[one] == data.patients[other]
    assert data.index["split"][one] == data.index["split"][other]
    # The cache closes the gap: the rows after the dropped file are still their own images.
    last = len(data.labels) - 1
    assert (data.pixels[last] == pixels((kaggle / data.index["path"][last]).read_bytes(), Preprocessing())).all()


def test_one_image_under_two_labels_is_refused(kaggle: Path, tmp_path: Path) -> None:
    shutil.copy(kaggle / "PNEUMONIA/person1_bacteria_1.jpeg", kaggle / "NORMAL/IM-0500-0001.jpeg")
    with pytest.raises(DataError, match=r"IM-0500-0001\.jpeg and .*person1_bacteria_1\.jpeg are the same image"):
        prepare_folder(kaggle, tmp_path)
    assert not (tmp_path / "prepared").exists()


def test_unreadable_files_are_left_out_and_named(
    kaggle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (kaggle / "NORMAL/IM-0001-0001.jpeg").read_bytes()
    broken = {"IM-0601-0001.jpeg": b"", "IM-0602-0001.jpeg": whole[: len(whole) // 2], "IM-0603-0001.jpeg": b"text"}
    for name, content in broken.items():
        (kaggle / "NORMAL" / name).write_bytes(content)
    latin = os.fsencode(kaggle / "NORMAL") + b"/IM-0604-\xe4.jpeg"
    with open(latin, "wb") as stream:
        stream.write(b"text")
    data = prepare_folder(kaggle, tmp_path)
    unreadable = {item["path"]: item["why"] for item in data.manifest["unreadable"]}
    assert sorted(unreadable) == [*(f"NORMAL/{name}" for name in broken), r"NORMAL/IM-0604-\udce4.jpeg"]
    assert "0 bytes" in unreadable["NORMAL/IM-0601-0001.jpeg"]
    assert len(data.labels) == 96
    said = capsys.readouterr().err
    assert all(name in said for name in broken)


def test_nothing_readable_is_an_error(kaggle: Path, tmp_path: Path) -> None:
    for path in kaggle.rglob("*.jpeg"):
        path.write_bytes(b"text")
    with pytest.raises(DataError, match="none of 96 images can be read"):
        prepare_folder(kaggle, tmp_path)


def test_fraction_takes_whole_patients_of_both_classes(kaggle: Path, tmp_path: Path) -> None:
    data = prepare_folder(kaggle, tmp_path, fraction=0.5)
    assert data.manifest["fraction"] == 0.5
    keys, first = np.unique(data.patients, return_index=True)
    assert np.bincount(data.labels[first]).tolist() == [12, 24]
    everyone = prepare_folder(kaggle, tmp_path / "all")
    whole = {key: int((everyone.patients == key).sum()) for key in keys}
    assert {key: int((data.patients == key).sum()) for key in keys} == whole


def test_too_few_patients_refuse_before_anything_is_decoded_and_few_warn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_images(tmp_path / "xrays", kaggle_names(normal=9, pneumonia=60))
    with pytest.raises(DataError, match="9 patients of class NORMAL, at least 10"):
        prepare_folder(root, tmp_path)
    write_images(root, kaggle_names(normal=20, pneumonia=60))
    prepare_folder(root, tmp_path)
    said = capsys.readouterr().err
    assert "only 20 patients of class NORMAL" in said
    assert "of class PNEUMONIA" not in said


def test_unknown_patients_are_said_and_counted_by_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{label}/{number}.png" for label in contract.LABELS for number in range(30)]
    root = write_images(tmp_path / "xrays", names)
    with pytest.raises(DataError, match=r"60 of 60 images have no patient by file names, such as 0\.png"):
        prepare_folder(root, tmp_path)
    data = prepare_folder(root, tmp_path, patients="unknown")
    assert data.manifest["patients"] == "unknown"
    assert data.manifest["split"]["straddling_patients"] is None
    assert len(set(data.patients)) == 60
    assert "only 30 images of class NORMAL" in capsys.readouterr().err


def official_table(root: Path, leak: bool) -> Path:
    """Twelve patients a class and part with two images each; with `leak`, one of them is in train and test."""
    lines = ["path,label,patient_id,split"]
    for label in contract.LABELS:
        for number in range(36):
            part = contract.SPLITS[number % 3]
            for image in range(2):
                name = f"{label.lower()}-{number}-{image}.png"
                own = "test" if leak and (label, number, image) == ("NORMAL", 0, 1) else part
                lines.append(f"{name},{label},{label}{number},{own}")
                write_images(root, [name])
    (root / "labels.csv").write_text("\n".join(lines), "utf-8")
    return root


def test_an_official_split_that_contradicts_its_patients_is_refused(tmp_path: Path) -> None:
    official = SplitConfig(strategy="official")
    with pytest.raises(DataError, match="1 patients are in more than one part of the split") as caught:
        prepare_folder(official_table(tmp_path / "leaky", leak=True), tmp_path, official)
    assert re.search(r"such as the one of normal-0-0\.png \(\w+\) and normal-0-1\.png \(test\);", str(caught.value))
    assert "NORMAL0" not in str(caught.value), "a hospital's patient number"
    data = prepare_folder(official_table(tmp_path / "clean", leak=False), tmp_path, official)
    assert data.manifest["patients_from"] == "labels.csv"
    assert data.manifest["counts"]["by_split"]["test"] == 48
    assert "val part has 48 images" in data.manifest["split"]["note"]


def test_patient_ids_of_the_table_are_hashed_with_the_salt_and_decide_nothing_but_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = official_table(tmp_path / "xrays", leak=True)
    made = {}
    for salt in ("", "secret"):
        monkeypatch.setenv(SALT_ENV, salt)
        made[salt] = prepare_folder(root, tmp_path).index
        for file in (tmp_path / "out").glob("*.[cj]s*"):
            assert re.search(r"(NORMAL|PNEUMONIA)\d", file.read_text("utf-8")) is None, file.name
    assert made[""]["split"] == made["secret"]["split"]
    assert set(made[""]["patient"]).isdisjoint(made["secret"]["patient"])
    for index in made.values():
        groups: dict[str, set[str]] = {}
        for path, patient in zip(index["path"], index["patient"], strict=True):
            groups.setdefault(patient, set()).add(path.rpartition("-")[0])
        assert len(groups) == 72 and all(len(names) == 1 for names in groups.values())
    # An image-level split warns about patients on both sides, and does not name them either.
    prepare_folder(root, tmp_path, SplitConfig(strategy="stratified"))
    said = capsys.readouterr().err
    assert "patients are in more than one part" in said and re.search(r"(NORMAL|PNEUMONIA)\d", said) is None


def test_official_folders_in_the_names_of_the_kaggle_set_are_kept_with_a_warning(
    kaggle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "parts"
    for path in sorted(kaggle.rglob("*.jpeg")):
        part = "test" if "virus" in path.name or "NORMAL2" in path.name else "train"
        (root / part / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / part / path.parent.name / path.name)
    data = prepare_folder(root, tmp_path, SplitConfig(strategy="official"))
    assert data.manifest["split"]["straddling_patients"] == 24
    assert "24 patients are in more than one part" in capsys.readouterr().err
    assert {path.split("/")[0] for path in np.array(data.index["path"])[data.indices("test")]} == {"test"}


def test_an_official_split_without_test_refuses_before_decoding(kaggle: Path, tmp_path: Path) -> None:
    for path in kaggle.rglob("*.jpeg"):
        path.write_bytes(b"no image: decoding these would be another error")
    with pytest.raises(DataError, match=r"use split\.strategy=patient"):
        prepare_folder(kaggle, tmp_path, SplitConfig(strategy="official"))


def test_a_folder_of_something_else_is_never_replaced(kaggle: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "prepared" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years of work", "utf-8")
    with pytest.raises(DataError, match=r"data\.prepared_dir="):
        prepare_folder(kaggle, tmp_path)
    assert thesis.read_text("utf-8") == "years of work"


def test_a_failed_run_leaves_the_former_result_and_no_litter(kaggle: Path, tmp_path: Path) -> None:
    before = prepare_folder(kaggle, tmp_path).manifest
    shutil.copy(kaggle / "PNEUMONIA/person1_bacteria_1.jpeg", kaggle / "NORMAL/IM-0500-0001.jpeg")
    with pytest.raises(DataError, match="same image"):
        prepare_folder(kaggle, tmp_path)
    assert load_prepared(tmp_path / "prepared").manifest == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".prepared.lock", "prepared", "raw", "xrays"]


@pytest.mark.parametrize("name", [contract.DATA_MANIFEST, contract.INDEX_FILE, contract.PIXELS_FILE])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_damage_is_seen_on_opening_and_mended_by_preparing(
    kaggle: Path, tmp_path: Path, name: str, damage: str
) -> None:
    digest = prepare_folder(kaggle, tmp_path).manifest["digest"]
    path = tmp_path / "prepared" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="prepare"):
        load_prepared(tmp_path / "prepared")
    if (name, damage) == (contract.DATA_MANIFEST, "gone"):  # Now nothing says that the folder is ours to replace.
        shutil.rmtree(tmp_path / "prepared")
    assert prepare_folder(kaggle, tmp_path).manifest["digest"] == digest


def test_preparing_before_fetching_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `pneumoctl data fetch"):
        prepare(folder_config(tmp_path), tmp_path / "raw", tmp_path / "prepared")


def _prepare_together(barrier: Any, root: Path, out: Path, answers: Any) -> None:
    config = folder_config(root, workers=1)
    said = io.StringIO()
    barrier.wait(60)
    with contextlib.redirect_stderr(said):
        digest = prepare(config, out / "raw", out / "prepared").manifest["digest"]
    answers.put((digest, "is up to date" in said.getvalue()))


def test_of_two_processes_at_once_one_waits_for_the_other(kaggle: Path, tmp_path: Path) -> None:
    fetch(folder_config(kaggle).data, tmp_path / "raw")
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    arguments = (context.Barrier(2), kaggle, tmp_path, answers)
    both = [context.Process(target=_prepare_together, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    digests, waited = zip(*[answers.get(timeout=60) for _ in both], strict=True)
    for process in both:
        process.join()
    data = load_prepared(tmp_path / "prepared")
    assert set(digests) == {data.manifest["digest"]}
    assert sorted(waited) == [False, True]
    assert len(set(data.index["sha256"])) == 96
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".prepared.lock", "prepared", "raw", "xrays"]


def test_the_manifest_is_plain_json_without_a_pixel(kaggle: Path, tmp_path: Path) -> None:
    data = prepare_folder(kaggle, tmp_path)
    manifest = json.loads((data.path / contract.DATA_MANIFEST).read_text("utf-8"))
    assert manifest["preprocessing"] == Preprocessing().to_json()
    assert (manifest["source"], manifest["synthetic"], manifest["patients"]) == ("folder", False, "named")
    assert manifest["split"]["strategy"] == "patient"


def test_a_prepared_shift_set_keeps_unused_images_out_of_every_part(tmp_path: Path) -> None:
    root = write_images(tmp_path / "xrays", kaggle_names(60, 90))
    data = prepare_folder(root, tmp_path / "out", SplitConfig(hold_out=["NORMAL2", "virus"]))
    groups = np.array(data.index["group"])
    assert set(groups[data.indices("test")]) == {"NORMAL2", "virus"}
    assert not {"NORMAL2", "virus"} & set(groups[np.r_[data.indices("train"), data.indices("val")]])
    unused = data.index["split"].count("unused")
    assert unused > 0
    assert sum(data.manifest["counts"]["by_split"].values()) + unused == len(data.labels)
    assert "never saw" in data.manifest["split"]["note"]
