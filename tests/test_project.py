"""The project's own promises: commands in the README, pins, the lock, and what no tracked file may name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import pneumonia

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import lock  # noqa: E402  tools/ is no package: its scripts run alone

PYTHONS = [f"{version}.0" for version in lock.PYTHONS]
LOCK_LINES = [line for line in lock.LOCK.read_text("utf-8").splitlines() if line and not line.startswith("#")]


def make(*arguments: str, cwd: Path = ROOT) -> str:
    return subprocess.run(["make", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


def tracked_files() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if names.returncode:
        pytest.skip("not a git checkout, so no file is tracked")
    return [path for name in names.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def applies(requirement: Requirement, python: str) -> bool:
    environment = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    environment |= {"sys_platform": "linux", "platform_machine": "x86_64"}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def pins_for(python: str) -> dict[str, list[str]]:
    pins: dict[str, list[str]] = {}
    for requirement in map(Requirement, LOCK_LINES):
        if applies(requirement, python):
            pins.setdefault(requirement.name, []).append(str(requirement.specifier))
    return pins


def targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):(?!=)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def test_help_is_the_default_and_lists_every_target() -> None:
    listed = set(re.findall(r"^  ([a-z0-9-]+) ", make(), re.MULTILINE))
    assert listed == targets()
    assert {"help", "setup", "lint", "type", "test", "e2e", "bench", "demo", "clean", "generate"} <= listed


def test_every_make_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", (ROOT / "README.md").read_text("utf-8")))
    assert {"demo", "test"} <= named
    assert named <= targets()


def test_the_readme_opens_with_its_purpose_and_says_what_it_is_not() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.index("make demo") < text.index("make test") < text.index("## ")
    assert "not a medical device" in text.lower()


def test_local_links_of_the_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    links = [(page, link) for page in documents for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))]
    assert links
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_the_version_is_the_same_everywhere() -> None:
    assert lock.project()["version"] == pneumonia.__version__


def test_what_the_build_adds_to_the_wheel_exists() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    table = text.partition("[tool.hatch.build.targets.wheel.force-include]\n")[2].partition("\n\n")[0]
    sources = re.findall(r'^"([^"]+)" = "pneumonia/', table, re.MULTILINE)
    assert "pipelines/train.yaml" in sources
    assert [source for source in sources if not (ROOT / source).is_file()] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_direct_dependencies_are_pinned_and_locked(python: str) -> None:
    pins = pins_for(python)
    for requirement in map(Requirement, lock.direct_requirements()):
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"{requirement}: not one exact version"
        if applies(requirement, python):
            assert pins[lock.canonical(requirement.name)] == [str(requirement.specifier)], f"{requirement}"


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_exactly_one_pin(python: str) -> None:
    names = {lock.canonical(Requirement(item).name) for item in lock.direct_requirements()}
    direct = [
        lock.canonical(requirement.name)
        for requirement in map(Requirement, lock.direct_requirements())
        if applies(requirement, python)
    ]
    assert sorted(direct) == sorted(names)
    assert [name for name, versions in pins_for(python).items() if len(versions) != 1] == []


def test_the_lock_leaves_the_build_of_torch_open() -> None:
    assert [line for line in LOCK_LINES if line.startswith("torch==")] == ["torch==2.13.0"]
    for line in LOCK_LINES:
        requirement = Requirement(line)
        assert requirement.url is None
        assert Version(str(requirement.specifier).removeprefix("==")).local is None, line
        assert not lock.CUDA_ONLY.match(requirement.name), line
        assert "--hash" not in line


def test_the_lock_is_sorted() -> None:
    names = [line.partition("==")[0] for line in LOCK_LINES]
    assert names == sorted(names)


def test_the_check_of_the_lock_sees_a_version_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = lock.locked_pins()
    monkeypatch.setattr(lock, "locked_pins", lambda: pins | {"pillow": "0.0.1", "zz-unneeded": "1"})
    found = lock.problems()
    assert any(line.startswith("pillow: pyproject.toml says") for line in found)
    assert any(line.startswith("pillow: the lock says 0.0.1, installed is") for line in found)
    assert "zz-unneeded: in the lock but nothing needs it" in found


def test_markers_name_the_pythons_that_differ() -> None:
    resolved = {"3.10": {"a": "1", "b": "1", "d": "2"}, "3.11": {"a": "1", "b": "2"}, "3.12": {"a": "1", "b": "2"}}
    assert lock.merge(resolved) == [
        "a==1",
        'b==1; python_version < "3.11"',
        'b==2; python_version >= "3.11"',
        'd==2; python_version < "3.11"',
    ]


def test_no_tracked_file_names_a_place_outside_the_project() -> None:
    # Put together here, so that this file does not hold what it looks for.
    machine = [f"/{name}/" for name in ("work" + "/main", "work" + "/shared", "home" + "/[a-z]", "ro" + "ot/[.a-z]")]
    hosts = ["pypi" + r"\.org", "python" + r"hosted\.org", "download" + r"\.pytorch\.org", r"index-url[= ]+\S*://"]
    forbidden = re.compile("|".join(rf"(?<![\w.]){item}" for item in [*machine, *hosts]))
    found = []
    for path in tracked_files():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in forbidden.finditer(text)]
    assert found == []


def test_an_unsupported_python_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    fake = tmp_path / "oldpython"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.18"\nexit 1\n')
    fake.chmod(0o755)
    environment = tmp_path / "venv"
    done = subprocess.run(
        ["bash", str(ROOT / "tools" / "setup.sh")],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(fake), "VENV": str(environment)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4
    assert "Python 3.8.18" in done.stderr and "expected Python 3.10 to 3.12" in done.stderr
    assert not environment.exists()


def test_the_ci_script_prints_its_table_and_fails_for_an_unknown_part() -> None:
    done = subprocess.run(["bash", ".ci/run", "nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(r"^nonsense +\d+ +failed \(2\)$", done.stdout, re.MULTILINE)


def test_the_ci_script_leaves_out_the_demo_on_xrays_where_there_are_none(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", ".ci/run", "demo-xrays"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PNEUMONIA_XRAYS": str(tmp_path / "absent")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "demo-xrays: skipped" in done.stdout
