"""The packaged chart names its home, and carries no credentials of a remote."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from tools.chart_package import ROOT, package, web_address


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://git.example/team/pneumonia.git\n", "https://git.example/team/pneumonia"),
        ("https://me:token@git.example/team/pneumonia", "https://git.example/team/pneumonia"),
        ("https://git.example:8443/team/pneumonia.git/", "https://git.example:8443/team/pneumonia"),
        ("git@git.example:team/pneumonia.git", "https://git.example/team/pneumonia"),
        ("ssh://git@git.example:2222/team/pneumonia.git", "https://git.example/team/pneumonia"),
        ("/srv/git/pneumonia", None),
        ("../pneumonia", None),
        ("", None),
    ],
)
def test_the_address_of_a_remote(remote: str, address: str | None) -> None:
    assert web_address(remote) == address


def about(archive: Path) -> dict[str, object]:
    with tarfile.open(archive) as files:
        found = files.extractfile("pneumonia/Chart.yaml")
        assert found is not None
        return dict(yaml.safe_load(found.read()))


def test_a_package_names_its_home_and_is_otherwise_the_chart(tmp_path: Path) -> None:
    own = yaml.safe_load((ROOT / "helm/pneumonia/Chart.yaml").read_text())
    home = "https://git.example/team/pneumonia"
    named = about(package(tmp_path / "named", home))
    assert (named["home"], named["sources"]) == (home, [home])
    assert {key: named[key] for key in own} == own
    assert "home" not in about(package(tmp_path / "plain", None))


def test_the_command_prints_the_package(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "tools/chart_package.py"),
        "--home",
        "https://x.example",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert about(Path(done.stdout.strip()))["home"] == "https://x.example"
