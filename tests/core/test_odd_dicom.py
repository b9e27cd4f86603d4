"""DICOM files that are odd and sound: read as other viewers show them, or refused with the element that is wrong."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumonia.core.image import decode_image
from pneumonia.core.preprocess import Preprocessing, pixels
from pneumonia.errors import DependencyMissing, ImageError
from tests.dicoms import dataset, dicom, encapsulate, encoded, gradient, pydicom

COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"
FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"


def shown(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data, "x.dcm")).astype(int)


def raw(made: Any, keyword: str, value: bytes, vr: str = "DS") -> Any:
    """Put a value into the file that pydicom would not write."""
    tag = pydicom.tag.Tag(keyword)
    made[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)
    return made


def with_table(keyword: str, descriptor: list[int], data: list[int], bits: int = 12, **elements: Any) -> bytes:
    """An image of 12 bits with a lookup table."""
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = descriptor, data
    made = dataset(gradient(bits), bits, **{keyword: [item], **elements})
    for name in ("LUTDescriptor", "LUTData"):
        made[keyword].value[0][name].VR = "US"
    return encoded(made)


def picture(bits: int) -> np.ndarray:
    """Something like a radiograph, whole range."""
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10), dtype=np.uint8))
    fine = np.asarray(coarse.resize((300, 340), Image.Resampling.BICUBIC)).astype(float)
    return (fine / 255 * ((1 << bits) - 1)).round().astype(np.uint8 if bits == 8 else np.uint16)


ORDINARY = {
    "221c9ace00de9169": lambda: dicom(picture(12) // 2 + 100, 12),
    "6353891f43d98173": lambda: dicom(picture(12), 12, WindowCenter=[1700, 4], WindowWidth=[2900, 5]),
    "7e8db13382e53d14": lambda: dicom(
        picture(12), 12, PhotometricInterpretation="MONOCHROME1", WindowCenter=2000, WindowWidth=3000
    ),
    "d22799c9b349d845": lambda: dicom(
        picture(12), 12, RescaleSlope="1.7", RescaleIntercept="-12.5", WindowCenter="1300.5", WindowWidth="4000.25"
    ),
    "ed4da2d2354caa99": lambda: dicom(
        picture(12), 12, WindowCenter=2048, WindowWidth=1500, VOILUTFunction="SIGMOID"
    ),
    "65d05581bbd59084": lambda: dicom(
        picture(12).astype(np.int16) - 2048, 12, RescaleSlope=-1, RescaleIntercept=0
    ),
    "164ac65abd2453c3": lambda: dicom(picture(12), 12, PixelPaddingValue=4095),
}  # fmt: skip
"""Ordinary files, and the digests of what models were trained on."""


@pytest.mark.parametrize("digest", ORDINARY)
def test_ordinary_files_give_the_same_pixels_as_ever(digest: str) -> None:
    found = pixels(ORDINARY[digest](), Preprocessing())
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == digest


def test_values_that_do_not_lie_in_the_lowest_bits_are_moved_there() -> None:
    left = (gradient(12) << 4).astype(np.uint16)
    expected = shown(dicom(gradient(12), 12, WindowCenter=2000, WindowWidth=3000))
    found = shown(dicom(left, 12, HighBit=15, WindowCenter=2000, WindowWidth=3000))
    assert (found == expected).all()
    signed = (gradient(12, signed=True).astype(np.int16) << 2).astype(np.int16)
    assert (shown(dicom(signed, 12, HighBit=13)) == shown(dicom(gradient(12, signed=True), 12))).all()
    noise_below = (left | 0xF).astype(np.uint16)
    assert (shown(dicom(noise_below, 12, HighBit=15, WindowCenter=2000, WindowWidth=3000)) == expected).all()


@pytest.mark.parametrize("high", [3, 16, 99])
def test_a_high_bit_that_cannot_be_is_named(high: int) -> None:
    with pytest.raises(ImageError, match=f"BitsStored 12 and HighBit {high} contradict"):
        decode_image(dicom(gradient(12), 12, HighBit=high))


@pytest.mark.parametrize("empty", [("RescaleSlope", "RescaleIntercept"), ("RescaleSlope",), ("RescaleIntercept",)])
@pytest.mark.parametrize("windowed", [False, True])
def test_an_empty_rescale_is_none(empty: tuple[str, ...], windowed: bool) -> None:
    window = {"WindowCenter": 2000, "WindowWidth": 3000} if windowed else {}
    made = dicom(gradient(12), 12, **{"RescaleSlope": 1, "RescaleIntercept": 0, **dict.fromkeys(empty, "")}, **window)
    assert (shown(made) == shown(dicom(gradient(12), 12, **window))).all()


def test_a_rescale_that_is_no_number_is_named() -> None:
    with pytest.raises(ImageError, match="RescaleSlope is no usable number"):
        decode_image(encoded(raw(dataset(gradient(12), 12, RescaleIntercept=0), "RescaleSlope", b"twelve")))
    with pytest.raises(ImageError, match="RescaleSlope is no usable number"):
        decode_image(dicom(gradient(12), 12, RescaleSlope=0, RescaleIntercept=0))


@pytest.mark.parametrize("center, width", [(b"2048", b"0\\0"), (b"2048", b"-4096 "), (b"auto", b"4096"), (b"", b"4096"),
                                           (b"2048", b""), (b"1e999 ", b"4096")])  # fmt: skip
def test_an_invalid_window_is_none(center: bytes, width: bytes) -> None:
    made = raw(raw(dataset(gradient(12) // 2, 12), "WindowCenter", center), "WindowWidth", width)
    assert (shown(encoded(made)) == shown(dicom(gradient(12) // 2, 12))).all()


def test_the_first_window_that_can_be_used_is() -> None:
    made = raw(raw(dataset(gradient(12), 12), "WindowCenter", b"auto\\1000\\7 "), "WindowWidth", b"9\\501\\8 ")
    assert (shown(encoded(made)) == shown(dicom(gradient(12), 12, WindowCenter=1000, WindowWidth=501))).all()


def test_a_window_below_one_is_of_measurements_below_one() -> None:
    found = shown(
        dicom(gradient(12), 12, RescaleSlope=0.0002442, RescaleIntercept=0, WindowCenter=0.5, WindowWidth=0.9)
    )
    expected = np.clip((gradient(12) * 0.0002442 - 0.5) / 0.9 + 0.5, 0, 1) * 255
    assert np.abs(found - expected).max() <= 1


def test_an_unknown_function_of_a_window_is_linear() -> None:
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    assert (
        shown(dicom(gradient(12), 12, VOILUTFunction="CURVE", **window)) == shown(dicom(gradient(12), 12, **window))
    ).all()


@pytest.mark.parametrize("most", [4095, 1023, 65535])
def test_a_voi_table_of_fewer_bits_than_it_says_reaches_white(most: int) -> None:
    data = [round(value / 4095 * most) for value in range(4096)]
    assert np.abs(shown(with_table("VOILUTSequence", [4096, 0, 16], data)) - gradient()).max() <= 1


@pytest.mark.parametrize(
    "descriptor, data", [([4096, 0, 16], [0, 1, 2]), ([3, 0, 99], [0, 1, 2]), ([300, 0, 16], [5] * 9)]
)
def test_a_voi_table_that_contradicts_itself_gives_way_to_the_window_or_is_named(descriptor: Any, data: Any) -> None:
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    made = with_table("VOILUTSequence", descriptor, data, **window)
    assert (shown(made) == shown(dicom(gradient(12), 12, **window))).all()
    with pytest.raises(ImageError, match="VOILUTSequence contradicts itself"):
        decode_image(with_table("VOILUTSequence", descriptor, data))


def test_a_voi_table_for_other_values_is_refused() -> None:
    with pytest.raises(ImageError, match="VOILUTSequence is for values of 0 to 255, and most pixels have others"):
        decode_image(with_table("VOILUTSequence", [256, 0, 8], list(range(256))))


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_a_modality_table_of_any_bits_is_used(bits: int) -> None:
    data = [round(value / 4095 * ((1 << bits) - 1)) for value in reversed(range(4096))]
    found = shown(with_table("ModalityLUTSequence", [4096, 0, bits], data))
    assert np.abs(found - (255 - gradient())).max() <= 1


def test_a_modality_table_that_contradicts_itself_is_named() -> None:
    with pytest.raises(ImageError, match="ModalityLUTSequence contradicts itself"):
        decode_image(with_table("ModalityLUTSequence", [4096, 0, 12], [1, 2, 3]))


@pytest.mark.parametrize("value", [0, 65535])
def test_a_bright_or_dark_marker_does_not_blacken_the_image(value: int) -> None:
    plain = picture(12) // 2 + 20_000
    marked = plain.copy()
    marked[5:8, 5:8] = value
    found, expected = shown(dicom(marked, 16)), shown(dicom(plain, 16))
    elsewhere = np.ones(plain.shape, bool)
    elsewhere[5:8, 5:8] = False
    assert np.abs(found - expected)[elsewhere].max() <= 1


@pytest.mark.parametrize(
    ("elements", "says"),
    [
        ({"SOPClassUID": FOR_PROCESSING}, "FOR PROCESSING"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "FOR PROCESSING"),
        ({"BodyPartExamined": "EXTREMITY"}, "BodyPartExamined is EXTREMITY; a radiograph of a chest was expected"),
        ({"BodyPartExamined": "Left Knee"}, "BodyPartExamined is LEFT KNEE"),
        ({"BodyPartExamined": "TSPINE"}, "BodyPartExamined is TSPINE"),
        ({"BodyPartExamined": "THORACIC SPINE"}, "BodyPartExamined is THORACIC SPINE"),
        ({"BodyPartExamined": "ABDOMEN"}, "BodyPartExamined is ABDOMEN"),
        ({"BodyPartExamined": "L-HAND"}, "BodyPartExamined is L HAND"),
        ({"ViewPosition": "LL"}, "ViewPosition is LL; a frontal view, PA or AP, was expected"),
        ({"ViewPosition": "LATERAL"}, "ViewPosition is LATERAL"),
        ({"ViewPosition": "RAO"}, "ViewPosition is RAO"),
        ({"PatientOrientation": ["A", "F"]}, "PatientOrientation has rows that run to A"),
    ],
)
def test_another_part_of_the_body_a_lateral_and_a_raw_image_are_refused(elements: Any, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        decode_image(dicom(gradient(12), 12, **elements), "x.dcm")


@pytest.mark.parametrize(
    "elements",
    [
        {"BodyPartExamined": "CHEST"}, {"BodyPartExamined": "PORT CHEST"}, {"BodyPartExamined": "Thorax"},
        {"BodyPartExamined": ""}, {"BodyPartExamined": "CHEST_TO_PELVIS"}, {"BodyPartExamined": "BRUSTKORB"},
        {"ViewPosition": "PA"}, {"ViewPosition": "AP"}, {"ViewPosition": ""}, {"ViewPosition": "LLD DECUBITUS"},
        {"PatientOrientation": ["L", "F"]}, {"PatientOrientation": ""}, {"PresentationIntentType": "FOR PRESENTATION"},
    ],
)  # fmt: skip
def test_a_chest_from_the_front_and_no_word_about_it_pass(elements: Any) -> None:
    assert (shown(dicom(gradient(), **elements)) == gradient()).all()


def test_codes_of_part_and_view_are_looked_at_too() -> None:
    for keyword, meaning in (("AnatomicRegionSequence", "Hand"), ("ViewCodeSequence", "left lateral")):
        item = pydicom.Dataset()
        item.CodeMeaning = meaning
        with pytest.raises(ImageError, match=keyword):
            decode_image(dicom(gradient(), **{keyword: [item]}))


@pytest.mark.parametrize("kind", [COMPUTED_RADIOGRAPHY, "1.2.840.10008.5.1.4.1.1.1.1"])
def test_without_a_modality_the_class_of_the_file_decides(kind: str) -> None:
    assert (shown(dicom(gradient(), Modality=None, SOPClassUID=kind)) == gradient()).all()
    made = dataset(gradient(), 8, Modality=None)
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = kind, made.SOPInstanceUID
    del made.SOPClassUID, made.SOPInstanceUID
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    assert (shown(stream.getvalue()) == gradient()).all()


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation",
                                     "PhotometricInterpretation"])  # fmt: skip
def test_a_missing_element_is_named(keyword: str) -> None:
    with pytest.raises(ImageError, match=f"DICOM element {keyword} is missing"):
        decode_image(dicom(gradient(), **{keyword: None}))


def test_one_sample_a_pixel_needs_no_word() -> None:
    assert (shown(dicom(gradient(), SamplesPerPixel=None)) == gradient()).all()


def test_colour_without_its_planes_is_named() -> None:
    rgb = np.repeat(gradient()[..., None], 3, axis=2)
    with pytest.raises(ImageError, match="PlanarConfiguration is missing"):
        decode_image(dicom(rgb, 8, SamplesPerPixel=3, PhotometricInterpretation="RGB"))


def test_floating_point_pixels_are_named() -> None:
    made = dataset(gradient(), 8, PixelData=None)
    made.FloatPixelData = gradient().astype(np.float32).tobytes()
    with pytest.raises(ImageError, match="floating-point pixels"):
        decode_image(encoded(made))


def test_twelve_bits_of_jpeg_name_the_package_they_need() -> None:
    if len(pydicom.pixels.get_decoder(pydicom.uid.JPEGExtended12Bit).available_plugins) > 1:
        pytest.skip("a decoder for JPEG of 12 bits is installed here")
    made = dataset(gradient(12), 12)
    made.file_meta.TransferSyntaxUID = pydicom.uid.JPEGExtended12Bit
    frame = b"\xff\xd8\xff\xc1\x00\x0b\x0c\x00\x48\x00\x60\x01\x01\x11\x00" + bytes(99) + b"\xff\xd9"
    made.PixelData = encapsulate([frame])
    made["PixelData"].is_undefined_length = True
    with pytest.raises(DependencyMissing, match=r"no decoder for JPEG Extended.*pip install pylibjpeg") as caught:
        decode_image(encoded(made))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("make", [lambda: np.full((72, 96), 200, np.uint8), lambda: np.full((72, 96), 900, np.uint16)])
def test_an_image_of_one_grey_is_refused(make: Any) -> None:
    with pytest.raises(ImageError, match="without contrast"):
        decode_image(dicom(make()))


@pytest.mark.parametrize("start", [b"\x02\x00\x01\x00", b"\x02\x00\x02\x00"])
def test_meta_elements_may_come_without_a_preamble(start: bytes) -> None:
    whole = dicom(gradient())
    at = whole.index(start, 132)
    assert (shown(whole[at:]) == gradient()).all()
