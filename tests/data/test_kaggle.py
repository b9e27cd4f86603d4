"""source=kaggle: the real kaggle package against a local server that speaks its calls."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import socket
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumonia.data import download
from pneumonia.data.archive import extract_images
from pneumonia.data.sources import kaggle, read_source
from pneumonia.data.sources.folder import list_images
from pneumonia.data.sources.kaggle import DATASET, PUBLISHED, check_credentials, count, differences
from pneumonia.errors import DataError, SourceUnavailable
from tests.file_server import SIGNATURE, TOKEN, FileServer, file_server
from tests.xray_folders import noise

MEBIBYTE = 1 << 20
ARCHIVE = f"/{DATASET}.zip"
# Without waiting between the package's attempts.
MAIN = "import time; time.sleep = lambda seconds: None; from pneumonia.cli.app import main; main()"

SMALL = {
    "train": ["NORMAL/IM-0001-0001.jpeg", "NORMAL/NORMAL2-IM-0002-0001.jpeg", "PNEUMONIA/person1_virus_1.jpeg"],
    "val": ["NORMAL/IM-0003-0001.jpeg", "PNEUMONIA/person2_bacteria_2.jpeg"],
    "test": ["NORMAL/IM-0004-0001.jpeg", "PNEUMONIA/person3_bacteria_3.jpeg"],
}


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def small_archive() -> bytes:
    """The layout of the published archive: everything twice, and what macOS adds."""
    members = {}
    for folder in ("chest_xray/chest_xray", "chest_xray"):
        for part, names in SMALL.items():
            for name in names:
                members[f"{folder}/{part}/{name}"] = noise(name)
                members[f"chest_xray/__MACOSX/{part}/{Path(name).parent}/._{Path(name).name}"] = b"macOS"
            members[f"{folder}/{part}/NORMAL/.DS_Store"] = b"macOS"
    members["chest_xray/notes.bin"] = random.Random(0).randbytes(3 * MEBIBYTE)  # the package stores whole MiB
    return zipped(members)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        running.files[ARCHIVE] = small_archive()
        yield running


def fetch(server: FileServer, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`pneumoctl data fetch data=kaggle` in `home`; the package's LOCALHOST and our proxy lead to the server."""
    plain = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and "KAGGLE" not in key}
    here = {"HOME": str(home), "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "HTTP_PROXY": server.address}
    return subprocess.run(
        [sys.executable, "-c", MAIN, "data", "fetch", "data=kaggle"],
        cwd=home,
        env={**plain, **here, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def check_fetched(done: subprocess.CompletedProcess[str], home: Path) -> None:
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"path": "data/raw", "source": "kaggle", "synthetic": False}
    found = {entry.path: entry.part for entry in list_images(home / "data/raw")}
    assert found == {f"{part}/{name}": part for part, names in SMALL.items() for name in names}
    assert (home / "data/raw/test/NORMAL/IM-0004-0001.jpeg").read_bytes() == noise(SMALL["test"][0])
    assert [path.name for path in (home / "data").iterdir() if "lock" not in path.name] == ["raw"]


def legacy_file(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "kaggle.json").write_text(json.dumps({"username": "someone", "key": "akey"}), "utf-8")


@pytest.mark.parametrize("form", ["token", "token file named", "access_token", "legacy", "kaggle.json", "config dir"])
def test_every_form_of_credentials_fetches_and_shows_in_no_output(
    server: FileServer, tmp_path: Path, form: str
) -> None:
    environment = {"VERBOSE": "1"}  # makes the package print whatever it sends
    basic = "Basic " + base64.b64encode(b"someone:akey").decode()
    expected = basic if form in ("legacy", "kaggle.json", "config dir") else f"Bearer {TOKEN}"
    if form == "token":
        environment["KAGGLE_API_TOKEN"] = TOKEN
    elif form == "token file named":
        (tmp_path / "token").write_text(TOKEN + "\n", "utf-8")
        environment["KAGGLE_API_TOKEN"] = str(tmp_path / "token")
    elif form == "access_token":
        (tmp_path / ".kaggle").mkdir()
        (tmp_path / ".kaggle/access_token").write_text(TOKEN, "utf-8")
    elif form == "legacy":
        environment |= {"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": "akey"}
    elif form == "kaggle.json":
        legacy_file(tmp_path / ".kaggle")
    else:
        legacy_file(tmp_path / "elsewhere")
        environment["KAGGLE_CONFIG_DIR"] = str(tmp_path / "elsewhere")
    done = fetch(server, tmp_path, **environment)
    check_fetched(done, tmp_path)
    for secret in (TOKEN, SIGNATURE, "akey", basic):
        assert secret not in done.stdout + done.stderr
    calls = [(path, headers.get("Authorization")) for _, path, headers in server.asked]
    assert calls[-2:] == [("/api/v1/datasets.DatasetApiService/DownloadDataset", expected), (ARCHIVE, None)]


def test_the_counts_that_differ_are_said_and_noted_and_a_second_fetch_asks_nothing(
    server: FileServer, tmp_path: Path
) -> None:
    first = fetch(server, tmp_path, KAGGLE_API_TOKEN=TOKEN)
    assert "warning: train/NORMAL has 2 images, 1341 are published" in first.stderr
    assert "warning: test/PNEUMONIA has 1 images, 390 are published" in first.stderr
    assert len(read_source(tmp_path / "data/raw")["differs"]) == 6
    server.asked.clear()
    again = fetch(server, tmp_path)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "is up to date, 7 images" in again.stderr
    assert server.asked == []


def test_the_published_counts_are_5856_and_their_images_raise_no_warning(tmp_path: Path) -> None:
    members = {
        f"chest_xray/{part}/{label}/{number}.jpeg": b"x"
        for part, labels in PUBLISHED.items()
        for label, images in labels.items()
        for number in range(images)
    }
    assert len(members) == 5856
    (tmp_path / "all.zip").write_bytes(zipped(members))
    extract_images(tmp_path / "all.zip", tmp_path / "all")
    assert differences(count(tmp_path / "all")) == []
    (tmp_path / "all/val/NORMAL/3.jpeg").unlink()
    assert differences(count(tmp_path / "all")) == ["val/NORMAL has 7 images, 8 are published"]


def test_without_credentials_one_error_lists_every_form_and_nothing_is_asked(
    server: FileServer, tmp_path: Path
) -> None:
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/access_token").write_text("", "utf-8")
    (tmp_path / ".kaggle/kaggle.json").write_text("{", "utf-8")
    done = fetch(server, tmp_path, KAGGLE_USERNAME="half")
    assert (done.returncode, done.stdout, server.asked) == (4, "", [])
    assert len(done.stderr.splitlines()) == 1
    for form in ("KAGGLE_API_TOKEN", "~/.kaggle/access_token", "KAGGLE_KEY", "kaggle.json", "kaggle auth login"):
        assert form in done.stderr
    assert "data=phantom" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_login_of_the_kaggle_tool_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KAGGLE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SourceUnavailable):
        check_credentials()
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/credentials.json").write_text('{"refresh_token": "x"}', "utf-8")
    check_credentials()


def test_a_wrong_token_and_refusals_exit_4_with_a_way_out(server: FileServer, tmp_path: Path) -> None:
    wrong = fetch(server, tmp_path, KAGGLE_API_TOKEN="KGAT_expired")
    assert (wrong.returncode, wrong.stdout) == (4, "")
    assert wrong.stderr.startswith("error: Kaggle: the credentials are refused; make a new token")
    assert len(wrong.stderr.splitlines()) == 1
    server.refuse = 403
    refused = fetch(server, tmp_path, KAGGLE_API_TOKEN=TOKEN)
    assert (refused.returncode, refused.stdout) == (4, "")
    assert "HTTP 403: access is refused" in refused.stderr and "accept its terms" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_no_network_is_said_without_a_traceback(server: FileServer, tmp_path: Path) -> None:
    done = fetch(server, tmp_path, KAGGLE_API_TOKEN=TOKEN, HTTP_PROXY="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (4, "")
    assert "cut off or no answer" in done.stderr and "data=phantom" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dropped_connection_is_taken_up_by_the_second_run_where_it_was(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [2 * MEBIBYTE + 1000, *[0] * 5]  # the download and the package's five attempts to go on
    cut = fetch(server, tmp_path, KAGGLE_API_TOKEN=TOKEN)
    assert (cut.returncode, cut.stdout) == (4, "")
    assert "cut off" in cut.stderr and "the same command goes on" in cut.stderr and "Traceback" not in cut.stderr
    assert SIGNATURE not in cut.stderr
    assert not (tmp_path / "data/raw").exists()
    server.asked.clear()
    check_fetched(fetch(server, tmp_path, KAGGLE_API_TOKEN=TOKEN), tmp_path)
    assert server.ranges_asked(ARCHIVE)[-1] == f"bytes={2 * MEBIBYTE}-"


def test_an_error_page_is_never_taken_for_the_beginning_of_the_archive(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [2 * MEBIBYTE + 1000, -503, -503]
    failed = fetch(server, tmp_path, KAGGLE_API_TOKEN=TOKEN)
    assert (failed.returncode, failed.stdout) == (4, "")
    assert "run the same command again" in failed.stderr and "Traceback" not in failed.stderr
    check_fetched(fetch(server, tmp_path, KAGGLE_API_TOKEN=TOKEN), tmp_path)
    assert server.ranges_asked(ARCHIVE)[-1] is None


def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    monkeypatch.setattr(kaggle, "_TIMEOUT_S", (0.3, 0.3))
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        with kaggle._timeouts(requests), pytest.raises(requests.Timeout):
            requests.get(url)
        with pytest.raises(SourceUnavailable, match="timed out"):
            download.download(url, tmp_path / "x", "")


def test_a_home_that_cannot_be_written_names_the_way_out(server: FileServer, tmp_path: Path) -> None:
    done = fetch(server, tmp_path, KAGGLE_API_TOKEN=TOKEN, HOME="/dev/null/home")
    assert (done.returncode, done.stdout) == (4, "")
    assert "set KAGGLE_CONFIG_DIR=" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_signed_address_in_the_chatter_of_the_package_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    with kaggle._quiet():
        print(f"Connection error: Max retries exceeded with url: /a.zip?signature={SIGNATURE} (Caused by x)")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "Connection error: Max retries exceeded with url: /a.zip?... (Caused by x)\n"


def test_an_archive_cut_short_on_the_server_leaves_nothing_and_a_whole_one_follows(
    server: FileServer, tmp_path: Path
) -> None:
    whole = server.files[ARCHIVE]
    server.files[ARCHIVE] = whole[:-200]
    done = fetch(server, tmp_path, KAGGLE_API_TOKEN=TOKEN)
    assert done.returncode == 3
    assert "chest-xray-pneumonia.zip: a damaged archive" in done.stderr and "removed" in done.stderr
    assert not (tmp_path / "data/raw").exists()
    server.files[ARCHIVE] = whole
    check_fetched(fetch(server, tmp_path, KAGGLE_API_TOKEN=TOKEN), tmp_path)


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("../../train/NORMAL/x.jpeg", "leaves its folder"),
        ("a/train/NORMAL/..", "leaves its folder"),
        ("a\\..\\..\\train\\NORMAL\\x.jpeg", "leaves its folder"),
        ("/train/NORMAL/x.jpeg", "has an absolute path"),
        ("C:/train/NORMAL/x.jpeg", "has an absolute path"),
        (link("train/NORMAL/x.jpeg"), "is a link or a device"),
        (link("somewhere/else"), "is a link or a device"),
    ],
)
def test_an_archive_that_leaves_its_folder_is_refused_whole(
    tmp_path: Path, member: str | zipfile.ZipInfo, says: str
) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("chest_xray/train/NORMAL/good.jpeg", b"good")
        archive.writestr(member, b"/etc/passwd")
    with pytest.raises(DataError, match=f"bad.zip: member .* {says}"):
        extract_images(tmp_path / "bad.zip", tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["bad.zip"]


def test_two_different_images_of_one_name_are_refused(tmp_path: Path) -> None:
    content = zipped({"a/train/NORMAL/x.jpeg": b"one", "a/a/train/NORMAL/x.jpeg": b"two"})
    (tmp_path / "two.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"a/train/NORMAL/x\.jpeg and a/a/train/NORMAL/x\.jpeg are two"):
        extract_images(tmp_path / "two.zip", tmp_path / "out")
