"""The DICOM reader beside DCMTK's, an independent one: `dcmj2pnm` draws the same files.

Debian and others have it as the package dcmtk.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumonia.core.image import decode_image
from tests.core.test_odd_dicom import picture, raw, with_table
from tests.dicoms import dataset, dicom, encoded, jpeg_dicom, pydicom

TOOL = shutil.which("dcmj2pnm") or shutil.which("dcm2img")
pytestmark = pytest.mark.skipif(TOOL is None, reason="DCMTK is not installed; apt-get install dcmtk")

RAMP = [value * 16 for value in range(4096)]
FILES: dict[str, Callable[[], bytes]] = {
    "8 bits": lambda: dicom(picture(8)),
    "12 bits": lambda: dicom(picture(12), 12),
    "16 bits": lambda: dicom(picture(16)),
    "signed": lambda: dicom(picture(12).astype(np.int16) - 2048, 12),
    "window": lambda: dicom(picture(12), 12, WindowCenter=1700, WindowWidth=2900),
    "MONOCHROME1": lambda: dicom(picture(12), 12, PhotometricInterpretation="MONOCHROME1"),
    "MONOCHROME1 with a window": lambda: dicom(
        picture(12), 12, PhotometricInterpretation="MONOCHROME1", WindowCenter=1500, WindowWidth=2500
    ),
    "several windows": lambda: dicom(picture(12), 12, WindowCenter=[1700, 9], WindowWidth=[2900, 9]),
    "rescale": lambda: dicom(
        picture(12), 12, RescaleSlope=2, RescaleIntercept=-500, WindowCenter=3000, WindowWidth=5000
    ),
    "negative slope": lambda: dicom(picture(12), 12, RescaleSlope=-1, RescaleIntercept=4095),
    "sigmoid": lambda: dicom(picture(12), 12, WindowCenter=2048, WindowWidth=1500, VOILUTFunction="SIGMOID"),
    "exact": lambda: dicom(picture(12), 12, WindowCenter=2048, WindowWidth=1500, VOILUTFunction="LINEAR_EXACT"),
    "values in the upper bits": lambda: dicom((picture(12) << 4).astype(np.uint16), 12, HighBit=15),
    "values in the middle": lambda: dicom((picture(10) << 3).astype(np.uint16), 10, HighBit=12),
    "empty rescale": lambda: dicom(
        picture(12), 12, RescaleSlope="", RescaleIntercept="", WindowCenter=1700, WindowWidth=2900
    ),
    "window of no width": lambda: dicom(picture(12), 12, WindowCenter=1700, WindowWidth=0),
    "window that is no number": lambda: encoded(
        raw(raw(dataset(picture(12), 12), "WindowCenter", b"auto"), "WindowWidth", b"4096")
    ),
    "unknown function": lambda: dicom(picture(12), 12, WindowCenter=1700, WindowWidth=2900, VOILUTFunction="CURVE"),
    "VOI table": lambda: with_table("VOILUTSequence", [4096, 0, 16], [*RAMP[:-1], 65535]),
    "VOI table that cannot be used, and a window": lambda: with_table(
        "VOILUTSequence", [4096, 0, 16], [1, 2, 3], WindowCenter=1700, WindowWidth=2900
    ),
    "modality table of 12 bits": lambda: with_table("ModalityLUTSequence", [4096, 0, 12], list(range(4095, -1, -1))),
    "no samples a pixel": lambda: dicom(picture(12), 12, SamplesPerPixel=None),
    "JPEG": lambda: jpeg_dicom(picture(8)),
    "run lengths": lambda: compressed(),
}  # fmt: skip
"""What DCMTK draws right. It draws as black: a window below 1 wide, a VOI table of fewer bits than it says, and an
unwindowed image with a marker; those have tests of their own."""


def compressed() -> bytes:
    made = dataset(picture(12), 12)
    made.compress(pydicom.uid.RLELossless)
    return encoded(made)


def drawn_by_dcmtk(data: bytes, folder: Path) -> np.ndarray:
    """The picture by the header's first window, else its table, else from the least to the greatest value."""
    path = folder / "x.dcm"
    path.write_bytes(data)
    made = pydicom.dcmread(io.BytesIO(data))
    widest = ["-W"] if made.BitsStored == 8 else ["+Wm"]
    choices = [["+Wi", "1"]] * ("WindowCenter" in made) + [["+Wl", "1"]] * ("VOILUTSequence" in made) + [widest]
    for option in choices:
        command = [str(TOOL), *option, "+op", str(path), str(folder / "x.pgm")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode == 0 and "E: " not in done.stderr and "F: " not in done.stderr:
            return np.asarray(Image.open(folder / "x.pgm").convert("L")).astype(int)
    raise AssertionError(done.stderr)


@pytest.mark.parametrize("name", FILES)
def test_both_readers_show_the_same(name: str, tmp_path: Path) -> None:
    data = FILES[name]()
    ours = np.asarray(decode_image(data)).astype(int)
    theirs = drawn_by_dcmtk(data, tmp_path)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 2, f"mean {np.abs(ours - theirs).mean():.2f}"
