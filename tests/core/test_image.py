"""What the decoder accepts, how it turns it grey, and what it says about the rest."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumonia.core.image import MAX_PIXELS, decode_image, read_image, unwrap_base64
from pneumonia.core.prediction import OperatingPoint, predictions
from pneumonia.core.preprocess import Preprocessing, normalize, pixels, preprocess
from pneumonia.errors import BundleError, ImageError


def _gradient(width: int = 96, height: int = 72) -> np.ndarray:
    return np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)


def _encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_grey_pixels_come_through_unchanged_in_every_mode() -> None:
    gray = Image.fromarray(_gradient())
    expected = _gradient()
    for mode in ("L", "RGB", "RGBA", "LA"):
        assert (np.asarray(decode_image(_encode(gray.convert(mode)))) == expected).all(), mode
    assert (np.asarray(decode_image(_encode(gray.convert("P")))) == expected).all()


def test_sixteen_bits_are_scaled_to_eight() -> None:
    deep = (_gradient().astype(np.uint16) << 8) | 0x7F
    assert (np.asarray(decode_image(_encode(Image.fromarray(deep)))) == _gradient()).all()


def test_transparency_is_laid_over_black() -> None:
    image = Image.fromarray(_gradient()).convert("RGBA")
    image.paste((255, 255, 255, 0), (0, 0, 96, 20))
    shown = np.asarray(decode_image(_encode(image)))
    assert shown[:20].max() == 0 and (shown[20:] == _gradient()[20:]).all()


def test_cmyk_jpeg_is_read() -> None:
    data = _encode(Image.fromarray(_gradient()).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(np.asarray(decode_image(data)).astype(int) - _gradient()).mean() < 3


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    image = decode_image(_encode(Image.fromarray(_gradient(96, 72)), "JPEG", exif=exif))
    assert image.size == (72, 96)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty, 0 bytes"),
        (b"this is a text", "not an image this reads"),
        (_encode(Image.fromarray(_gradient()), "JPEG")[:200], "damaged image data"),
        (_encode(Image.new("L", (1, 1))), "1x1 pixels"),
        (_encode(Image.new("L", (64, 64)), "GIF"), "not an image this reads"),
        (_encode(Image.new("1", (9000, 9000))), f"at most {MAX_PIXELS:,} pixels"),
    ],
)
def test_what_is_no_radiograph_is_refused_by_name(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        decode_image(data, "x.jpeg")
    assert str(caught.value).startswith("x.jpeg: ")


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageError, match="pixels"):
        decode_image(_encode(Image.new("1", (30_000, 30_000))))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpeg: cannot be read"):
        read_image(tmp_path / "none.jpeg")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path)


def test_base64_is_unwrapped_and_raw_images_are_left_alone() -> None:
    for kind in ("JPEG", "PNG"):
        raw = _encode(Image.fromarray(_gradient()), kind)
        text = base64.b64encode(raw)
        assert unwrap_base64(raw) == raw
        assert unwrap_base64(text) == raw
        assert unwrap_base64(base64.encodebytes(raw)) == raw
        assert unwrap_base64(b"data:image/jpeg;base64," + text) == raw


def test_any_size_becomes_the_square_and_normalises_to_imagenet_statistics() -> None:
    white = Image.new("L", (300, 150), 255)
    white.paste(0, (150, 0, 300, 150))
    black = Image.new("L", (64, 500))
    black.paste(255, (0, 400, 64, 500))
    batch = preprocess([_encode(white), _encode(black)], Preprocessing())
    assert batch.shape == (2, 3, 224, 224)
    assert batch.dtype == np.float32
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert batch[0, :, 0, 0] == pytest.approx((1 - mean) / std, abs=1e-6)
    assert batch[1, :, 100, 100] == pytest.approx(-mean / std, abs=1e-6)


def test_both_sides_are_scaled_and_nothing_is_cropped() -> None:
    image = np.zeros((100, 400), np.uint8)
    image[:, :20] = 255
    image[:, -20:] = 255
    out = pixels(_encode(Image.fromarray(image)), Preprocessing())
    assert (out[:, :9] > 200).all()
    assert (out[:, -9:] > 200).all()
    assert (out[:, 20:200] == 0).all()


def _radiograph(mode: str = "L") -> Image.Image:
    random = np.random.default_rng(3)
    coarse = Image.fromarray(random.integers(0, 256, (12, 10), dtype=np.uint8))
    scene = np.asarray(coarse.resize((1300, 1700), Image.Resampling.BICUBIC), float) + random.normal(0, 5, (1700, 1300))
    return Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_scaled_decoding_of_a_large_jpeg_stays_close_to_all_its_pixels(mode: str, progressive: bool) -> None:
    data = _encode(_radiograph(mode), "JPEG", quality=85, progressive=progressive)
    spec = Preprocessing()
    assert min(decode_image(data, least_side=spec.least_side).size) in range(448, 1300)
    gap = np.abs(pixels(data, spec).astype(int) - pixels(data, dataclasses.replace(spec, scaled_decoding=None)))
    assert gap.max() <= 3


def test_scaled_decoding_keeps_orientation_and_sees_damage() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    data = _encode(_radiograph(), "JPEG", exif=exif)
    whole = decode_image(data)
    small = decode_image(data, least_side=448)
    assert small.size == (whole.size[0] // 2, whole.size[1] // 2) == (850, 650)
    with pytest.raises(ImageError, match="damaged"):
        decode_image(data[: len(data) // 2], least_side=448)


def test_small_files_and_older_bundles_are_decoded_whole() -> None:
    spec = Preprocessing()
    data = _encode(_radiograph().resize((890, 890)), "JPEG")
    assert decode_image(data, least_side=spec.least_side).size == (890, 890)
    older = {key: value for key, value in spec.to_json().items() if key != "scaled_decoding"}
    assert Preprocessing.from_json(older).least_side is None
    with pytest.raises(BundleError, match="scaled_decoding"):
        Preprocessing.from_json({**older, "scaled_decoding": 0.5})


def test_the_table_equals_plain_arithmetic() -> None:
    spec = Preprocessing()
    gray = np.random.default_rng(0).integers(0, 256, (2, 224, 224), dtype=np.uint8)
    plain = (gray[:, None] / 255 - np.reshape(spec.mean, (1, 3, 1, 1))) / np.reshape(spec.std, (1, 3, 1, 1))
    assert np.abs(normalize(gray, spec) - plain).max() < 1e-5


def test_preprocessing_survives_json_and_refuses_what_it_does_not_know() -> None:
    spec = Preprocessing(resample="bicubic")
    assert Preprocessing.from_json(spec.to_json()) == spec
    with pytest.raises(BundleError, match="magic"):
        Preprocessing.from_json({**spec.to_json(), "resample": "magic"})
    with pytest.raises(BundleError, match="size, resample, mean and std"):
        Preprocessing.from_json({"size": 224})


def test_confidence_belongs_to_the_answer_even_below_one_half() -> None:
    logits = np.array([[1.0, 0.0], [0.0, 5.0], [5.0, 0.0]])
    point = OperatingPoint(temperature=1.0, threshold=0.2, sure=0.75)
    unsure, sick, healthy = predictions(logits, point, model_id="m@1")
    assert (unsure.label, round(unsure.confidence, 4)) == ("PNEUMONIA", 0.2689)
    assert sick.label == "PNEUMONIA"
    assert sick.confidence == pytest.approx(sick.probability)
    assert healthy.label == "NORMAL"
    assert healthy.confidence == pytest.approx(1 - healthy.probability)
    assert {p.threshold for p in (unsure, sick, healthy)} == {0.2}
    # The other class has .7311.
    assert [p.uncertain for p in (unsure, sick, healthy)] == [True, False, False]
    sure, _, _ = predictions(logits, OperatingPoint(temperature=1.0, threshold=0.2, sure=0.73), model_id="m@1")
    assert not sure.uncertain


def test_an_offset_moves_the_log_odds_after_the_temperature() -> None:
    logits = np.array([[0.0, 2.0], [1.0, 0.0]])
    found = OperatingPoint(temperature=2.0, threshold=0.5, offset=-1.0).probability(logits)
    assert found == pytest.approx([0.5, 1 / (1 + np.exp(1.5))])
