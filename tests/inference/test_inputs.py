"""What bulk scoring takes from folders, patterns, lists and archives, and in which order."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from pneumonia.core import image
from pneumonia.errors import BadInput, ImageError
from pneumonia.inference import inputs as module
from pneumonia.inference.inputs import Inputs
from tests.bundles import xray
from tests.dicoms import dicom, gradient


def names(*given: object) -> list[str]:
    return [item.name for item in Inputs([str(one) for one in given])]


def problems(*given: object) -> dict[str, str]:
    """Why images cannot be read, by name."""
    found = {}
    for item in Inputs([str(one) for one in given]):
        try:
            item.read()
        except ImageError as error:
            found[item.name] = str(error)
    return found


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `in`, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpeg", "a.PNG", "deep/er/c.jpg", "notes.txt", ".hidden.png", ".git/d.png", "LICENSE", "x.1.2"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    for name in ("IM0001", "1.2.840.10008", "DICOMDIR"):
        (tmp_path / "in" / name).write_bytes(dicom(gradient()))
    return tmp_path / "in"


def test_a_folder_gives_its_images_and_those_below_sorted(tree: Path) -> None:
    expected = ["in/1.2.840.10008", "in/IM0001", "in/a.PNG", "in/b.jpeg", "in/deep/er/c.jpg"]
    given = Inputs(["in"])
    assert given.count() == 5
    assert [item.name for item in given] == expected
    assert given.skipped == 5  # notes.txt .hidden.png LICENSE x.1.2 DICOMDIR


def test_patterns_and_lists(tree: Path) -> None:
    assert names("in/*.jpeg", "in/**/*.jpg") == ["in/b.jpeg", "in/deep/er/c.jpg"]
    Path("list.txt").write_text("in/notes.txt\n\nin/absent.png\r\nin/b.jpeg\n", "utf-8")
    assert names("@list.txt") == ["in/notes.txt", "in/absent.png", "in/b.jpeg"]
    assert problems("@list.txt") == {
        "in/absent.png": "in/absent.png: cannot be read (No such file or directory); give the path of a JPEG, PNG or "
        "DICOM file"
    }


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("absent", "no such file or folder"),
        ("in/*.gif", "no file of this pattern"),
        ("@absent.txt", "no list absent.txt"),
    ],
)
def test_an_input_that_is_not_there_is_said_at_once(tree: Path, given: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Inputs(["in", given])


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> None:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpeg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


MEMBERS = {"./z/1.jpeg": b"one", "a.txt": b"no", "__MACOSX/._1.jpeg": b"no", "2.png": b"two", "IM7": dicom(gradient())}


@pytest.mark.parametrize(
    ("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("x.tar.xz", "w:xz")]
)
def test_a_tar_is_streamed_in_its_own_order(tmp_path: Path, name: str, mode: str) -> None:
    write_tar(tmp_path / name, MEMBERS, mode)
    found = [(item.name, item.read()) for item in Inputs([str(tmp_path / name)])]
    folder = f"{tmp_path / name}/"
    assert found == [(f"{folder}z/1.jpeg", b"one"), (f"{folder}2.png", b"two"), (f"{folder}IM7", dicom_of(found[2][1]))]
    assert sorted(os.listdir(tmp_path)) == [name]


def dicom_of(data: bytes) -> bytes:
    """The data itself, once it is known to be a DICOM file."""
    assert data[128:132] == b"DICM"
    return data


def test_a_zip_and_its_bad_members(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in MEMBERS.items():
            archive.writestr(name.removeprefix("./"), data)
        archive.writestr("torn.jpeg", xray(1))
    raw = bytearray(path.read_bytes())
    raw[raw.index(xray(1)[:40]) + 100] ^= 0xFF
    path.write_bytes(raw)
    assert names(path) == [f"{path}/{name}" for name in ("z/1.jpeg", "2.png", "IM7", "torn.jpeg")]
    assert Inputs([str(path)]).count() == 4
    assert list(problems(path)) == [f"{path}/torn.jpeg"]
    assert "Bad CRC-32" in problems(path)[f"{path}/torn.jpeg"]


def test_an_archive_that_breaks_off_keeps_what_stood_before(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    write_tar(path, {f"{number}.jpeg": xray(number) for number in range(6)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = names(path)
    assert found[0] == f"{path}/0.jpeg"
    assert found[-1] == str(path)
    assert "damaged archive after" in problems(path)[str(path)]
    for name in ("no.zip", "no.tar"):
        (tmp_path / name).write_bytes(b"hello" * 1000)
        assert list(problems(tmp_path / name)) == [str(tmp_path / name)]


def test_a_file_too_large_to_be_a_radiograph_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in (module, image):
        monkeypatch.setattr(reader, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(module._read_zip, "__defaults__", ((1 << 20) + 1,))
    (tmp_path / "big.png").write_bytes(bytes((1 << 20) + 1))
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(5_000_000))
    write_tar(tmp_path / "x.tar.gz", {"bomb.png": bytes(5_000_000)})
    for given in ("big.png", "x.zip", "x.tar.gz"):
        (problem,) = problems(tmp_path / given).values()
        assert ("more than 1 MiB" if given == "big.png" else "at most 1,048,576 are read") in problem
