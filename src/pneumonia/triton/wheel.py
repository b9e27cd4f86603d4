"""Triton as the nvidia-pytriton wheel carries it, found without importing that package."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import sysconfig
from pathlib import Path

from pneumonia.errors import DependencyMissing, MissingPrerequisite

SITE_PACKAGES_ENV = "PNEUMONIA_SITE_PACKAGES"


def find_wheel() -> Path:
    """The folder tritonserver/ of the wheel, found without importing it."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise MissingPrerequisite(
            f"the local server runs on Linux x86-64, this is {sys.platform} {platform.machine()}; "
            "run the server's container image instead"
        )
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise DependencyMissing("no Triton server here: pip install 'pneumonia[serve]'")
    return Path(next(iter(spec.submodule_search_locations))) / "tritonserver"


def assemble_backend(wheel: Path, target: Path) -> None:
    """The Python backend beside the stub of the running Python, as links to the wheel's files."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise MissingPrerequisite(f"the wheel's server has no Python backend for Python {version}; use 3.10 to 3.12")
    target.mkdir(parents=True)
    for source in (*(wheel / "backends" / "python").glob("*.[sp]*"), stub):
        (target / source.name).symlink_to(source)


def link_files(source: Path, target: Path) -> None:
    """The folders of `source` anew, with links to its files."""
    for path in source.rglob("*"):
        if path.is_file() and path.parent.name != "__pycache__":
            link = target / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


def server_environment(wheel: Path) -> dict[str, str]:
    """The child's environment: the wheel's libraries, libpython, and where the models find their packages."""
    site = wheel.parents[1]
    libraries = [str(site / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR") or "")]
    package_root = Path(__file__).resolve().parents[2]
    folders = [str(package_root), *(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))]
    present = os.environ.get("LD_LIBRARY_PATH")
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *([present] if present else [])]),
        SITE_PACKAGES_ENV: os.pathsep.join(dict.fromkeys(folders)),
    }
