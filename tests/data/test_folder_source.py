"""source=folder: class folders and labels.csv, and what is wrong with them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pneumonia.config.schema import DataConfig
from pneumonia.data.sources import fetch
from pneumonia.data.sources.folder import list_images
from pneumonia.errors import ConfigError, DataError
from tests.xray_folders import kaggle_names, noise, write_images


def write_table(root: Path, *lines: str, header: str = "path,label,patient_id,split") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png", "c.png"):
        (root / name).write_bytes(noise(name))
    (root / "labels.csv").write_text("\n".join([header, *lines]) + "\n", "utf-8")
    return root


def test_flat_folders_in_any_case_with_foreign_files_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, ["normal/a.JPG", "Pneumonia/b.png", "Pneumonia/._b.png"])
    (tmp_path / "Pneumonia/notes.txt").write_text("seen twice")
    found = [(entry.path, entry.label, entry.part) for entry in list_images(tmp_path)]
    assert found == [("Pneumonia/b.png", 1, None), ("normal/a.JPG", 0, None)]


def test_part_folders(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/NORMAL/a.png", "VAL/PNEUMONIA/b.png", "test/PNEUMONIA/c.png", "extra/NORMAL/d.png"])
    found = {entry.path: (entry.label, entry.part) for entry in list_images(tmp_path)}
    assert found == {
        "train/NORMAL/a.png": (0, "train"),
        "VAL/PNEUMONIA/b.png": (1, "val"),
        "test/PNEUMONIA/c.png": (1, "test"),
    }


def test_a_table_wins_over_folders_and_bears_a_byte_order_mark(tmp_path: Path) -> None:
    write_images(tmp_path, ["NORMAL/x.png", "PNEUMONIA/y.png"])
    write_table(tmp_path, "a.png,normal,p1,train", "b.png, PNEUMONIA ,,", header="\ufeffpath,label,patient_id,split")
    found = [(e.path, e.label, e.patient, e.part) for e in list_images(tmp_path)]
    assert found == [("a.png", 0, "p1", "train"), ("b.png", 1, None, None)]


@pytest.mark.parametrize(
    "lines, expected",
    [
        (["a.png,NORMAL,,", "b.png,HEALTHY,,"], "line 3: label 'HEALTHY', expected NORMAL or PNEUMONIA"),
        (["a.png,NORMAL,,", "gone.png,NORMAL,,"], "line 3: gone.png is not a file"),
        (["a.png,NORMAL,,", "b.png,PNEUMONIA,,dev"], "line 3: split 'dev', expected train, val, test"),
        (["a.png,NORMAL,,", "a.png,PNEUMONIA,,"], "line 3: a.png stands on line 2 already"),
        (["a.png,NORMAL,,", ",PNEUMONIA,,"], "line 3: an empty path is not a file"),
        (["a.png,NORMAL,,", "b.png,NORMAL,,"], "none of them PNEUMONIA"),
        (["a.png"], "line 2: the row is shorter than the header"),
    ],
)
def test_a_wrong_line_of_the_table_is_named(tmp_path: Path, lines: list[str], expected: str) -> None:
    with pytest.raises(DataError, match="^" + ".*" + expected.replace(".", r"\.")):
        list_images(write_table(tmp_path, *lines))


def test_a_table_without_its_columns_shows_its_header(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column label and path.*this one is file,class"):
        list_images(write_table(tmp_path, "a.png;NORMAL", header="file;class"))


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    write_table(tmp_path)
    (tmp_path / "labels.csv").write_bytes("path,label\nä.png,NORMAL\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"labels\.csv: cannot be read as a comma-separated UTF-8 table"):
        list_images(tmp_path)


def test_a_folder_without_classes_says_what_was_found(tmp_path: Path) -> None:
    write_images(tmp_path, ["healthy/a.png", "sick/b.png"])
    with pytest.raises(DataError, match="found healthy, sick"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        list_images(tmp_path / "nowhere")


def test_images_deeper_than_read_are_refused_not_lost(tmp_path: Path) -> None:
    write_images(tmp_path, ["NORMAL/a.png", "PNEUMONIA/patient7/b.png", "PNEUMONIA/c.png"])
    with pytest.raises(DataError, match=r"PNEUMONIA: has images in a folder of its own, patient7"):
        list_images(tmp_path)


def test_fetch_notes_the_folder_and_copies_nothing(kaggle: Path, tmp_path: Path) -> None:
    out = fetch(DataConfig(source="folder", root=os.path.relpath(kaggle)), tmp_path / "raw")
    source = json.loads((out / "source.json").read_text("utf-8"))
    assert (source["source"], source["synthetic"], source["root"]) == ("folder", False, str(kaggle))
    assert source["images"] == len(kaggle_names())
    assert [entry.name for entry in out.iterdir()] == ["source.json"]


def test_the_note_changes_when_the_folder_does(kaggle: Path, tmp_path: Path) -> None:
    def note() -> str:
        out = fetch(DataConfig(source="folder", root=str(kaggle)), tmp_path / "raw")
        return (out / "source.json").read_text("utf-8")

    before = note()
    assert note() == before
    (kaggle / "NORMAL" / "IM-0900-0001.jpeg").write_bytes(noise("new"))
    assert note() != before


def test_drawn_images_stay_synthetic_when_they_come_as_a_folder(tmp_path: Path) -> None:
    drawn = fetch(DataConfig(source="phantom", num_images=40), tmp_path / "drawn")
    out = fetch(DataConfig(source="folder", root=str(drawn)), tmp_path / "raw")
    source = json.loads((out / "source.json").read_text("utf-8"))
    assert (source["source"], source["synthetic"]) == ("folder", True)


def test_sources_take_turns_in_one_folder(kaggle: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for _ in range(2):
        fetch(DataConfig(source="phantom", num_images=40), raw)
        assert len(list_images(raw)) == 40
        fetch(DataConfig(source="folder", root=str(kaggle)), raw)
        assert [entry.name for entry in raw.iterdir()] == ["source.json"]


def test_no_root_is_a_usage_error_and_no_source_lists_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root="):
        fetch(DataConfig(source="folder"), tmp_path / "raw")
    with pytest.raises(ConfigError, match=r"data=phantom.*data=folder"):
        fetch(DataConfig(), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("images_in_place", [False, True])
def test_fetch_never_replaces_what_it_did_not_put_there(kaggle: Path, images_in_place: bool) -> None:
    if images_in_place:  # The images lie in raw_dir itself, so that a note of ours stands beside them.
        fetch(DataConfig(source="folder", root=str(kaggle)), kaggle)
    with pytest.raises(DataError, match=r"holds files that this did not fetch, such as NORMAL, PNEUMONIA"):
        fetch(DataConfig(source="phantom", num_images=40), kaggle)
    assert len(list_images(kaggle)) == len(kaggle_names())
