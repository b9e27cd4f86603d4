"""What a server image does with `pneumonia-triton REPOSITORY [FLAG...]`: check the release, then run Triton."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from pneumonia import contract
from pneumonia.bundle import Manifest
from pneumonia.errors import BundleNotFound, PneumoniaError, Refused, StorageError, UsageError
from pneumonia.release_manifest import verify_release
from pneumonia.triton.hardening import become
from pneumonia.triton.repository import is_current, make_current, manifest_of
from pneumonia.triton.wheel import link_files


def server_command(arguments: list[str]) -> list[str]:
    """The tritonserver command for REPOSITORY and the flags behind it.

    Raises UsageError without a repository, BundleNotFound where it holds no release, StorageError where it cannot be
    read, BundleError where it is damaged or changed, Refused for a model of drawn images without ALLOW_SYNTHETIC_ENV.
    """
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"usage: {contract.SERVER_COMMAND} REPOSITORY [FLAG...], flags being tritonserver's")
    repository = Path(arguments[0])
    try:
        _check(repository)
    except OSError as error:
        raise StorageError(
            f"{error.filename or repository}: user {os.getuid()} cannot read it ({error.strerror}); let all users read "
            "the release (chmod -R a+rX), or run as the user that owns it"
        ) from error
    # The configurations are complete; completing them would start every Python model twice.
    served = _servable(repository)
    return ["tritonserver", f"--model-repository={served}", "--disable-auto-complete-config", *arguments[1:]]


def _servable(repository: Path) -> Path:
    """The repository, or links to it with what an older release lacks.

    That is the ensemble's version, where a storage initializer dropped it with its empty file, and code that this
    version's library takes. Releases of this version lack neither.
    """
    version = Path(contract.ENSEMBLE) / contract.MODEL_VERSION
    if (repository / version).is_dir() and is_current(repository):
        return repository
    linked = Path(tempfile.mkdtemp(prefix="pneumonia-repository."))
    link_files(repository.resolve(), linked)
    (linked / version).mkdir(parents=True, exist_ok=True)
    make_current(linked)
    return linked


def _check(repository: Path) -> None:
    config = repository / contract.ENSEMBLE / "config.pbtxt"
    bundle = manifest_of(repository)
    for file in (config, bundle):
        # Not Path.exists: it takes what may not be read for what is absent, in some versions of Python.
        try:
            os.stat(file)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleNotFound(
                f"{repository}: no release ({file.relative_to(repository)} is missing); mount the folder that "
                "`pneumoctl publish` printed, or build it into the image with `make images RELEASE=<that folder>`"
            ) from error
    manifest = Manifest.read(bundle)
    # What a bucket or a download damaged, and what someone changed, is found before it answers anyone.
    if (repository / contract.RELEASE_MANIFEST).is_file():
        verify_release(repository)
    if manifest.synthetic and os.environ.get(contract.ALLOW_SYNTHETIC_ENV) != "1":
        raise Refused(
            f"{repository}: {manifest.name} was trained on drawn images and its answers mean nothing for a patient; "
            f"serve a model trained on X-rays, or set {contract.ALLOW_SYNTHETIC_ENV}=1 to try the server"
        )


def main() -> None:
    """Run the server; the library's errors are one line and their exit code."""
    try:
        command = server_command(sys.argv[1:])
    except PneumoniaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    become(command)


if __name__ == "__main__":
    main()
