"""What the DICOM reader shows, what it refuses, and that it tells nobody who the patient is."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumonia.core.image import MAX_PIXELS, decode_image, unwrap_base64
from pneumonia.errors import DependencyMissing, ImageError, PneumoniaError
from tests.dicoms import (
    NAME,
    SECONDARY_CAPTURE,
    FileMetaDataset,
    dataset,
    dicom,
    encapsulate,
    encoded,
    gradient,
    jpeg_dicom,
    pydicom,
)


def shown(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data, "x.dcm")).astype(int)


def test_eight_bits_without_a_window_come_through_unchanged() -> None:
    assert (shown(dicom(gradient())) == gradient()).all()
    dull = (gradient() // 2 + 30).astype(np.uint8)
    assert (shown(dicom(dull)) == dull).all()


@pytest.mark.parametrize("bits", [10, 12, 14, 15, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_more_bits_are_stretched_over_what_the_image_uses(bits: int, signed: bool) -> None:
    out = shown(dicom(gradient(bits, signed=signed) // 4 + 5, bits))
    assert np.abs(out - gradient()).max() <= 1
    assert (out.min(), out.max()) == (0, 255)


def test_padding_does_not_count_as_a_value_of_the_image() -> None:
    stored = gradient(12)
    stored[:5] = 4095
    stored[5:] //= 8
    out = shown(dicom(stored, 12, PixelPaddingValue=4095))
    assert (out[:5] == 255).all()
    assert out[-1, -1] == 255 and out[5, 0] < 30


def test_monochrome1_is_turned_over() -> None:
    assert (shown(dicom(gradient(), PhotometricInterpretation="MONOCHROME1")) == 255 - gradient()).all()


def test_the_window_decides_what_is_black_and_white() -> None:
    out = shown(dicom(gradient(12), 12, WindowCenter=1000, WindowWidth=501))
    stored = gradient(12).astype(float)
    expected = np.clip((stored - 999.5) / 500 + 0.5, 0, 1) * 255  # PS3.3 C.11.2.1.2.1
    assert np.abs(out - expected).max() <= 0.51


def test_the_window_is_in_units_of_the_rescale() -> None:
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -500}
    plain = shown(dicom(gradient(12), 12, WindowCenter=1000, WindowWidth=501))
    scaled = shown(dicom(gradient(12), 12, **rescale, WindowCenter=1500, WindowWidth=1002))
    assert np.abs(plain - scaled).max() <= 1
    falling = shown(dicom(gradient(12), 12, RescaleSlope=-1, RescaleIntercept=4095))
    assert np.abs(falling - (255 - gradient())).max() <= 1


def test_the_first_of_several_windows_and_the_sigmoid_are_used() -> None:
    one = shown(dicom(gradient(12), 12, WindowCenter=1000, WindowWidth=500))
    several = shown(dicom(gradient(12), 12, WindowCenter=[1000, 2000], WindowWidth=[500, 90]))
    assert (one == several).all()
    out = shown(dicom(gradient(12), 12, WindowCenter=2048, WindowWidth=1000, VOILUTFunction="SIGMOID"))
    expected = 255 / (1 + np.exp(-4 * (gradient(12) - 2048.0) / 1000))
    assert np.abs(out - expected).max() <= 0.51


def test_the_voi_lut_goes_before_the_window() -> None:
    item = pydicom.Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item.LUTData = [65535 - 257 * value for value in range(256)]
    made = dataset(gradient(), 8, WindowCenter=10, WindowWidth=2, VOILUTSequence=[item])
    made["VOILUTSequence"].value[0]["LUTDescriptor"].VR = "US"
    made["VOILUTSequence"].value[0]["LUTData"].VR = "US"
    assert (shown(encoded(made)) == 255 - gradient()).all()


def test_compressed_pixels() -> None:
    assert np.abs(shown(jpeg_dicom(gradient())) - gradient()).mean() < 2
    made = dataset(gradient(12), 12)
    made.compress(pydicom.uid.RLELossless)
    assert np.abs(shown(encoded(made)) - gradient()).max() <= 1
    stream = io.BytesIO()
    Image.fromarray(gradient()).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    made = dataset(gradient(), 8)
    made.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    made.PixelData = encapsulate([stream.getvalue()])
    made["PixelData"].is_undefined_length = True
    assert (shown(encoded(made)) == gradient()).all()
    made = dataset(gradient(), 8)
    made.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    assert (shown(encoded(made)) == gradient()).all()


def test_a_coloured_secondary_capture_is_its_luminance() -> None:
    rgb = np.repeat(gradient()[..., None], 3, axis=2)
    elements = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    data = dicom(rgb, 8, **elements, Modality="OT", SOPClassUID=SECONDARY_CAPTURE)
    assert (shown(data) == gradient()).all()


def test_neither_the_name_nor_a_preamble_is_needed() -> None:
    made = dataset(gradient(), 8)
    stream = io.BytesIO()
    made.file_meta = FileMetaDataset()
    made.preamble = None
    made.save_as(stream, implicit_vr=True, little_endian=True)
    assert (shown(stream.getvalue()) == gradient()).all()


def test_base64_of_a_dicom_file_is_unwrapped() -> None:
    import base64

    raw = dicom(gradient())
    assert unwrap_base64(raw) == raw
    assert unwrap_base64(base64.b64encode(raw)) == raw


@pytest.mark.parametrize(
    ("elements", "says"),
    [
        ({"Modality": "CT"}, r"DICOM modality CT; a chest radiograph was expected: CR"),
        ({"Modality": "US"}, "DICOM modality US"),
        ({"Modality": "OT"}, "DICOM modality OT"),
        ({"Modality": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "DICOM modality unknown"),
        ({"NumberOfFrames": 3}, "of 3 frames; send one radiograph a file"),
        ({"PixelData": None}, "without pixels"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "DICOM pixels PALETTE COLOR with 1 samples of 8 bits"),
        ({"BitsStored": 4, "HighBit": 3}, "of 4 bits; expected MONOCHROME1"),
        ({"Rows": 60000, "Columns": 60000}, f"at most {MAX_PIXELS:,} pixels"),
        ({"Rows": 3}, "a radiograph of at least 64x64"),
        ({"Rows": 480}, r"damaged DICOM file \(PixelData has 6,912 bytes, Rows and Columns need 46,080\)"),
        ({"Rows": None}, "DICOM element Rows is missing"),
    ],
)
def test_what_is_no_single_radiograph_is_refused_by_name(elements: dict[str, object], says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        decode_image(dicom(gradient(), **elements), "x.dcm")
    assert str(caught.value).startswith("x.dcm: ")


def test_compression_without_a_decoder_names_the_package() -> None:
    made = dataset(gradient(), 8)
    made.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    made.PixelData = encapsulate([b"\xff\xd8" + b"\0" * 64])
    made["PixelData"].is_undefined_length = True
    if pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless).is_available:
        pytest.skip("a decoder for JPEG-LS is installed here")
    with pytest.raises(DependencyMissing, match=r"no decoder for JPEG-LS .* pip install pylibjpeg pylibjpeg-libjpeg"):
        decode_image(encoded(made))


def test_a_compressed_picture_larger_than_the_header_says_is_refused_undecoded() -> None:
    with pytest.raises(ImageError, match="the picture inside is 9000x9000, Columns and Rows say 64x64"):
        decode_image(jpeg_dicom(np.zeros((9000, 9000), np.uint8), Rows=64, Columns=64))
    made = dataset(gradient(), 8)
    made.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    bomb = b"\x81\0" * 500_000  # 64 MB
    made.PixelData = encapsulate([(1).to_bytes(4, "little") + (64).to_bytes(4, "little") + b"\0" * 56 + bomb])
    made["PixelData"].is_undefined_length = True
    with pytest.raises(ImageError, match="damaged"):
        decode_image(encoded(made))


def test_bytes_changed_or_cut_anywhere_give_our_own_errors_only() -> None:
    rng = np.random.default_rng(0)
    originals = [dicom(gradient(12), 12, WindowCenter=9, WindowWidth=9), jpeg_dicom(gradient())]
    refused = 0
    for number in range(600):
        broken = bytearray(originals[number % 2])
        for at in rng.integers(0, min(len(broken), 1200), rng.integers(1, 8)):
            broken[at] = rng.integers(0, 256)
        data = bytes(broken[: rng.integers(1, len(broken))] if number % 3 == 0 else broken)
        try:
            decode_image(data)
        except PneumoniaError as error:
            refused += 1
            assert NAME not in str(error)
    assert refused > 200


def test_nothing_printed_names_the_patient(tmp_path: Path) -> None:
    odd = {"PatientBirthDate": "not a date", "PatientAge": "Nightingale"}
    (tmp_path / "x.dcm").write_bytes(dicom(gradient(), Rows=480, **odd))
    code = (
        "import logging, sys; logging.basicConfig(level=0)\n"
        "from pneumonia.core.image import decode_image; decode_image(open(sys.argv[1], 'rb').read(), 'x.dcm')"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.dcm"], capture_output=True, text=True)
    assert "damaged DICOM file" in done.stderr
    for word in ("Nightingale", "MRN-0815", "not a date"):
        assert word not in done.stdout + done.stderr


def test_the_patients_number_is_hashed_with_its_issuer_and_the_salt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumonia.core.dicom import SALT_ENV, patient_key

    monkeypatch.delenv(SALT_ENV, raising=False)
    path = tmp_path / "x.dcm"
    path.write_bytes(dicom(gradient()))
    plain = patient_key(path)
    assert plain == hashlib.sha256(b"\0\0MRN-0815").hexdigest()[:16]
    monkeypatch.setenv(SALT_ENV, "secret")
    assert patient_key(path) not in (plain, None)
    monkeypatch.delenv(SALT_ENV)
    path.write_bytes(dicom(gradient(), IssuerOfPatientID="Scutari"))
    assert patient_key(path) not in (plain, None)
    path.write_bytes(dicom(gradient(), PatientID=""))
    assert patient_key(path) is None
    path.write_bytes(b"hello")
    assert patient_key(path) is None


def test_without_pydicom_the_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(dicom(gradient()))
    code = (
        "import sys; sys.modules['pydicom'] = None; sys.argv = ['pneumoctl', 'infer', *sys.argv[1:]]\n"
        "from pneumonia.core.image import decode_image\n"
        "from pneumonia.errors import DependencyMissing\n"
        "try: decode_image(open(sys.argv[2], 'rb').read())\n"
        "except DependencyMissing as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.dcm"], capture_output=True, text=True)
    assert "pip install 'pneumonia[dicom]'" in done.stdout, done.stderr
