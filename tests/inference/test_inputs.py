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
    (tmp_path / "big.png").write_bytes(bytes((1 << 20) + 1))
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(5_000_000))
    write_tar(tmp_path / "x.tar.gz", {"bomb.png": bytes(5_000_000)})
    for given in ("big.png", "x.zip", "x.tar.gz"):
        (problem,) = problems(tmp_path / given).values()
        assert ("more than 1 MiB" if given == "big.png" else "at most 1,048,576 are read") in problem


def test_a_linked_folder_is_followed_once_and_a_loop_never(tmp_path: Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "real/deep/a.png").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "real/up").symlink_to(tmp_path / "in", target_is_directory=True)
    assert names(tmp_path / "in") == [f"{tmp_path}/in/link/deep/a.png"]


def test_the_content_decides_where_the_name_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jfif").write_bytes(xray(1))
    (tmp_path / "b.img").write_bytes(dicom(gradient()))
    (tmp_path / "c.tif").write_bytes(b"II*\0" + bytes(200))
    given = Inputs([str(tmp_path)])
    assert [Path(item.name).name for item in given] == ["a.jfif", "b.img"]
    assert (given.skipped, given.left_out) == (1, [f"{tmp_path}/c.tif"])
    write_tar(tmp_path / "x.tar", {"a.jfif": xray(1), "IM1": dicom(gradient()), "big.mp4": bytes(9_000_000)})
    given = Inputs([str(tmp_path / "x.tar")])
    assert [item.read() for item in given] == [xray(1), dicom_of(given_bytes(tmp_path / "x.tar", "IM1"))]
    assert given.left_out == [f"{tmp_path}/x.tar/big.mp4", f"{tmp_path}/x.tar/link.jpeg"]


def given_bytes(path: Path, member: str) -> bytes:
    with tarfile.open(path) as archive:
        stream = archive.extractfile(member)
        assert stream is not None
        return stream.read()


def test_a_hard_link_in_a_tar_is_said_not_lost(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        first = tarfile.TarInfo("a.jpeg")
        first.size = 3
        archive.addfile(first, io.BytesIO(b"one"))
        link = tarfile.TarInfo("b.jpeg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpeg"
        archive.addfile(link)
    assert names(tmp_path / "x.tar") == [f"{tmp_path}/x.tar/a.jpeg", f"{tmp_path}/x.tar/b.jpeg"]
    assert "a link to a.jpeg in the archive; unpack it" in problems(tmp_path / "x.tar")[f"{tmp_path}/x.tar/b.jpeg"]


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_of_gigabytes_is_refused_before_it_is_unpacked(tmp_path: Path, kind: bytes) -> None:
    import tracemalloc

    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", compresslevel=1) as archive:
        image = tarfile.TarInfo("a.jpeg")
        image.size = 3
        archive.addfile(image, io.BytesIO(b"one"))
        header = tarfile.TarInfo("long")
        header.type, header.size = kind, 100_000_000
        archive.fileobj.write(header.tobuf())
        for _ in range(100):
            archive.fileobj.write(b"a" * 1_000_000)
    tracemalloc.start()
    try:
        found = problems(tmp_path / "x.tar.gz")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert "a header of 100,000,000 bytes; at most 1,048,576 are read" in found[f"{tmp_path}/x.tar.gz"]
    assert names(tmp_path / "x.tar.gz")[0] == f"{tmp_path}/x.tar.gz/a.jpeg"


def test_a_zip_member_too_large_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    import tracemalloc

    with (
        zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("bomb.png", "w", force_zip64=True) as stream,
    ):
        for _ in range(300):
            stream.write(bytes(1_000_000))
    tracemalloc.start()
    try:
        (problem,) = problems(tmp_path / "x.zip").values()
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert "300,000,000 bytes; at most" in problem
