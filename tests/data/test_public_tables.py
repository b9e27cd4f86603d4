"""Tables of public sets as they are downloaded, in small; and our own table as spreadsheets write it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pneumonia.config.compose import compose
from pneumonia.config.schema import DataConfig
from pneumonia.data.labels import Columns
from pneumonia.data.prepare import prepare
from pneumonia.data.sources import fetch
from pneumonia.data.sources.folder import Found, survey
from pneumonia.errors import ConfigError, DataError
from tests.xray_folders import noise, write_images


def survey_of(root: Path, **columns: str) -> Found:
    config = DataConfig(source="folder", root=str(root), **columns)
    return survey(root, Columns.of(config, root))


def labels(found: Found) -> dict[str, tuple[int, str | None]]:
    return {entry.path: (entry.label, entry.patient) for entry in found.listed}


def test_nih(tmp_path: Path) -> None:
    write_images(tmp_path, ["images_001/images/00000001_000.png", "images_002/images/00000002_000.png",
                            "images_002/images/00000003_000.png", "images_002/images/00000004_000.png"])  # fmt: skip
    (tmp_path / "Data_Entry_2017.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
        "00000001_000.png,Cardiomegaly|Pneumonia,0,1,58,M,PA,2682,2749,0.143,0.143,\n"
        "00000002_000.png,No Finding,0,2,81,M,PA,2500,2048,0.171,0.171,\n"
        "00000003_000.png,Effusion,0,3,81,M,PA,2500,2048,0.171,0.171,\n"
        "00000009_000.png,No Finding,0,9,81,M,PA,2500,2048,0.171,0.171,\n"
    )
    found = survey_of(tmp_path, labels="Data_Entry_2017.csv", path_column="Image Index", label_column="Finding Labels",
                      positive="Pneumonia", negative="No Finding", patient_column="Patient ID")  # fmt: skip
    assert labels(found) == {
        "images_001/images/00000001_000.png": (1, "1"),
        "images_002/images/00000002_000.png": (0, "2"),
    }
    assert found.reasons() == {
        "its label is neither class": 1,
        "in the table, and not a file below the folder": 1,
        "not in the table, or in a row that does not count": 1,
    }


def test_chexpert(tmp_path: Path) -> None:
    names = [f"train/patient{number:05d}/study1/view{view}.jpg" for number, view in
             [(1, "1_frontal"), (2, "1_frontal"), (2, "2_lateral"), (3, "1_frontal"), (4, "1_frontal")]]  # fmt: skip
    write_images(tmp_path, names)
    rows = [f"CheXpert-v1.0-small/{name},Female,68,{view},AP,{value}" for name, view, value in
            zip(names, ["Frontal", "Frontal", "Lateral", "Frontal", "Frontal"], ["1.0", "0.0", "0.0", "-1.0", ""],
                strict=True)]  # fmt: skip
    (tmp_path / "train.csv").write_text("\n".join(["Path,Sex,Age,Frontal/Lateral,AP/PA,Pneumonia", *rows]) + "\n")
    found = survey_of(tmp_path, labels="train.csv", path_column="Path", label_column="Pneumonia", positive="1",
                      only="Frontal/Lateral=Frontal")  # fmt: skip
    assert {path: label for path, (label, _) in labels(found).items()} == {names[0]: 1, names[1]: 0}
    assert found.reasons()["its label is neither class"] == 2
    assert found.reasons()["not in the table, or in a row that does not count"] == 1


def test_rsna_has_a_row_a_box_and_names_without_suffix(tmp_path: Path) -> None:
    write_images(tmp_path, ["stage_2_train_images/a-1.dcm", "stage_2_train_images/b-2.dcm"])
    (tmp_path / "stage_2_train_labels.csv").write_text(
        "patientId,x,y,width,height,Target\na-1,,,,,0\nb-2,264,152,213,379,1\nb-2,562,152,256,453,1\n"
    )
    found = survey_of(tmp_path, labels="stage_2_train_labels.csv", path_column="patientId", label_column="Target",
                      positive="1", patient_column="patientId")  # fmt: skip
    assert labels(found) == {"stage_2_train_images/a-1.dcm": (0, "a-1"), "stage_2_train_images/b-2.dcm": (1, "b-2")}
    assert found.left_out == []


def test_vindr_has_a_row_a_finding_and_any_of_them_counts(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/50a418.dicom", "train/9a5094.dicom", "train/0007d3.dicom"])
    (tmp_path / "train.csv").write_text(
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
        "50a418,No finding,14,R11,,,,\n9a5094,Cardiomegaly,3,R10,691,1375,1653,1831\n"
        "9a5094,Consolidation,4,R9,1,2,3,4\n0007d3,Nodule/Mass,8,R9,1,2,3,4\n"
    )
    found = survey_of(tmp_path, labels="train.csv", path_column="image_id", label_column="class_name",
                      positive="Consolidation,Pneumonia", negative="No finding")  # fmt: skip
    assert {path: label for path, (label, _) in labels(found).items()} == {
        "train/50a418.dicom": 0,
        "train/9a5094.dicom": 1,
    }
    assert found.left_out == [("train/0007d3.dicom", "its label is neither class")]


def test_a_public_table_prepares_in_one_step(tmp_path: Path) -> None:
    rows = ["image;kind;who"]
    for number in range(60):
        write_images(tmp_path / "set", [f"{number}.png"])
        rows.append(f"{number};{'sick' if number % 2 else 'well'};{number // 2 * 2 + number % 2}")
    (tmp_path / "set/all.csv").write_text("\n".join(rows))
    config = compose([f"data.root={tmp_path}/set", "data.labels=all.csv", "data.path_column=Image",
                      "data.label_column=kind", "data.positive=sick", "data.patient_column=WHO"])  # fmt: skip
    raw = fetch(config.data, tmp_path / "raw")
    # What fetch was told holds for a later prepare, which is told nothing.
    data = prepare(compose([]), raw, tmp_path / "prepared")
    assert sum(data.manifest["counts"]["by_split"].values()) == 60
    assert data.manifest["patients_from"] == "labels.csv"
    assert data.manifest["left_out"]["count"] == 0


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("path;label", ["in/a.png;normal", "in/b.png;PNEUMONIA"]),
        ("path\tlabel", ["in/a.png\tNORMAL", "in/b.png\tPNEUMONIA"]),
        ("Path, Label", ["in/a.png, NORMAL", "in/b.png, PNEUMONIA", ",", " , "]),
        ("PATH,LABEL,", ["in\\a.png,0,", ".\\in\\b.png,1,"]),
        ("sep=;\npath;label", ["in/a.png;0", "in/b.png;1"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["labels.csv", "Labels.CSV"])
def test_our_table_as_spreadsheets_write_it(
    tmp_path: Path, header: str, rows: list[str], encoding: str, name: str
) -> None:
    write_images(tmp_path, ["in/a.png", "in/b.png"])
    (tmp_path / name).write_bytes("\r\n".join([header, *rows]).encode(encoding))
    found = survey(tmp_path)
    assert {Path(entry.path).name: entry.label for entry in found.listed} == {"a.png": 0, "b.png": 1}
    assert found.left_out == []


def test_a_table_that_fits_nothing_says_which_setting_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"no column label and path; .*this one is a,b"):
        survey_of(tmp_path, labels="x.csv")
    with pytest.raises(DataError, match=r"none of its rows has an image.*such as 1; check data\.path_column="):
        survey_of(tmp_path, labels="x.csv", path_column="a", label_column="b", positive="2")
    with pytest.raises(DataError, match=r"data\.labels=none\.csv: no such file"):
        survey_of(tmp_path, labels="none.csv")
    with pytest.raises(ConfigError, match=r"data\.positive: names a column or value of data\.labels="):
        compose(["data.root=x", "data.positive=1"])
    with pytest.raises(ConfigError, match=r"data\.labels= needs data\.root="):
        compose(["data.labels=x.csv"])


def test_a_folder_named_alone_is_the_source(tmp_path: Path) -> None:
    assert compose([f"data.root={tmp_path}"]).data.source == "folder"
    with pytest.raises(ConfigError, match="has no meaning for data=phantom"):
        compose(["data=phantom", f"data.root={tmp_path}"])


def test_what_is_left_out_is_counted_named_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"train/{label}/{number}.png" for label in ("NORMAL", "PNEUMONIA") for number in range(12)]
    write_images(tmp_path / "set", [*names, "train/COVID/c.png", "spare/d.jpg", "valid/NORMAL/e.png",
                                    "validation/PNEUMONIA/f.png"])  # fmt: skip
    (tmp_path / "set/train/NORMAL/g.tif").write_bytes(b"II*\0" + bytes(200))
    config = compose([f"data.root={tmp_path}/set", "data.patients=unknown"])
    data = prepare(config, fetch(config.data, tmp_path / "raw"), tmp_path / "prepared")
    assert len(data.labels) == 26
    manifest = json.loads((tmp_path / "prepared/prepared.json").read_text())
    elsewhere = "in no folder NORMAL or PNEUMONIA, directly or under train, val or test"
    assert manifest["left_out"]["count"] == 3
    assert manifest["left_out"]["reasons"] == {elsewhere: 2, "no image that is read, by its content": 1}
    assert {"path": "train/COVID/c.png", "why": elsewhere} in manifest["left_out"]["files"]
    said = capsys.readouterr().err
    assert "warning: left out, 2 files: in no folder NORMAL or PNEUMONIA" in said and "spare/d.jpg" in said


def test_dicom_without_a_suffix_linked_folders_and_odd_suffixes_are_taken(tmp_path: Path) -> None:
    from tests.dicoms import dicom, gradient

    root = write_images(tmp_path / "set", ["NORMAL/a.png", "NORMAL/b.jfif"])
    (root / "NORMAL/IM000001").write_bytes(dicom(gradient()))
    (root / "NORMAL/1.2.840.1").write_bytes(dicom(gradient()))
    write_images(tmp_path / "elsewhere", ["c.png"])
    (root / "PNEUMONIA").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/loop").symlink_to(root, target_is_directory=True)
    found = survey(root)
    assert [entry.path for entry in found.listed] == [
        "NORMAL/1.2.840.1", "NORMAL/IM000001", "NORMAL/a.png", "NORMAL/b.jfif", "PNEUMONIA/c.png"
    ]  # fmt: skip
    assert found.left_out == []


def test_the_folder_that_was_meant_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, ["chest_xray/train/NORMAL/a.png", "chest_xray/train/PNEUMONIA/b.png"])
    with pytest.raises(DataError, match=r"did you mean data\.root=.*/chest_xray\?"):
        survey(tmp_path)


def test_names_of_an_export_are_no_patients(tmp_path: Path) -> None:
    from pneumonia.data.patients import patient_keys

    names = [f"NORMAL/IM-{number:04d}-0001.jpeg" for number in range(5)]
    with pytest.raises(DataError, match=r"5 of 5 .*count the series and images of an export and name no patient; give"):
        patient_keys(names, [None] * 5, "auto", None)
    assert patient_keys([*names, "PNEUMONIA/person1_virus_1.jpeg"], [None] * 6, "auto", None)[1] == "file names"


def test_one_patient_for_all_is_said_to_be_that(tmp_path: Path) -> None:
    from pneumonia.data.patients import patient_keys

    with pytest.raises(DataError, match=r"all 3 images have one patient by PatientID.*data\.patients=unknown"):
        patient_keys(["a", "b", "c"], [None] * 3, "auto", None, lambda: ["x", "x", "x"])


def test_the_regex_may_find_the_patient_in_a_folder() -> None:
    from pneumonia.data.patients import patient_keys

    keys, _ = patient_keys(["patient00001/study1/view1.jpg", "patient2/x.jpg"], [None] * 2, "auto", r"patient0*(\d+)")
    assert keys == ["1", "2"]


def test_a_name_that_would_move_the_cursor_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.xray_folders import prepare_folder

    names = [f"{label}/{number}.png" for label in ("NORMAL", "PNEUMONIA") for number in range(12)]
    root = write_images(tmp_path / "set", names)
    (root / "NORMAL/\x1b]0;title\x07\nerror: step gate: fake.png").write_bytes(noise("x")[:300])
    prepare_folder(root, tmp_path / "out", patients="unknown")
    said = capsys.readouterr().err
    assert "\x1b" not in said and "\nerror: step gate" not in said
    assert "\\x1b]0;title\\x07\\nerror: step gate: fake.png" in said
